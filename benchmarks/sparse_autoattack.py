r"""Compares AutoAttack on the sparse file of a pruned network with that on its masked network.

    python -m harp_jax.main --config=configs/mnist_cnn.py --workdir=runs/mnist99 \
        --config.prune.target=0.01 --config.prune.live=True
    python -m benchmarks.sparse_autoattack --workdir runs/mnist99

Both are calls of `harp_jax.evaluate` with the standard AutoAttack, one after the other, on the
first test images of the run, with its epsilon and seed, on a device per core. Seconds include
compilation. An image's outcome is what broke it first; rounding may change a few.
"""

import argparse
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
from etils import epath

import harp_jax
from benchmarks.autoattack import load_task
from harp_jax import checkpoint, export, parallel
from harp_jax.evaluation import evaluate

RESULTS = pathlib.Path(__file__).parent / "results" / "sparse_autoattack.json"


def compare(workdir: epath.Path, images: int, batch_size: int) -> dict[str, Any]:
    """Attacks both forms of the last stage's network; returns what the results file holds."""
    task = load_task(workdir, None, images, batch_size)
    results: dict[str, Any] = {
        "network": task.name,
        "images": len(task.split),
        "epsilon": task.epsilon,
        "seed": task.seed,
        "jax": jax.__version__,
        "devices": parallel.names(parallel.local_devices()),
    }
    broken_by = []
    with tempfile.TemporaryDirectory() as folder:
        file = epath.Path(folder) / "network.safetensors"
        export.write(workdir, file, "sparse")
        for name, path in {"masked": workdir, "sparse": file}.items():
            logits_fn, metadata = harp_jax.load(path)
            started = time.perf_counter()
            found = evaluate(
                logits_fn,
                task.split.images,
                task.split.labels,
                epsilon=task.epsilon,
                batch_size=batch_size,
                seed=task.seed,
            )
            seconds = time.perf_counter() - started
            results[name] = {"seconds": round(seconds, 1), "after": found.after}
            results["sparsity"] = metadata.get("sparsity")
            broken_by.append(found.broken_by)
            print(name, json.dumps(results[name]), flush=True)
    masked, sparse = broken_by
    return {
        **results,
        "ratio": round(results["masked"]["seconds"] / results["sparse"]["seconds"], 2),
        "different_outcomes": int(np.sum(masked != sparse)),
        "different_robustness": int(np.sum((masked == "") != (sparse == ""))),
    }


def main() -> None:
    """Measures, prints and writes benchmarks/results/sparse_autoattack.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=epath.Path, help="of a finished run")
    parser.add_argument("--images", type=int, default=1000, help="test images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=512, help="images at once (%(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="file of results, JSON")
    flags = parser.parse_args()
    parallel.one_device_per_core([flags.batch_size])
    found = compare(checkpoint.absolute(flags.workdir), flags.images, flags.batch_size)
    print(json.dumps(found, indent=2))
    flags.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
