"""Measures what a checkpoint's checksums cost, and how long a save stops training.

    python -m benchmarks.digests --network=resnet50

Saves and loads variables and momentum of a network's size, with random values, in a temporary
folder, in turn with the record of checksums and, as older versions, without. Prints and writes the
least and the median of several times: seconds of a whole save, of its part in which training waits,
and of a load of everything; and the ratio of the least ones.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from harp_jax import checkpoint, models
from harp_jax.checkpoint import reading, record

OUT = pathlib.Path("benchmarks/results/digests.json")


def arrays(network: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns random variables of a network for ImageNet's images, and momentum of its params."""
    random = np.random.default_rng(0)
    images = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(models.create(network, 1000).init, jax.random.key(0), images)

    def filled(tree: Any) -> Any:
        return jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), tree)

    return filled(dict(shapes)), {"opt_state": filled(shapes["params"])}


def seconds(function: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def once(folder: pathlib.Path, variables: Any, training: Any) -> dict[str, float]:
    """Saves and loads once; returns the seconds of each part by name."""
    checkpoints = checkpoint.StageCheckpoints(folder)
    stall = seconds(lambda: checkpoints.save_last(1, variables, training, {}))
    whole = stall + seconds(checkpoints.close)
    path = epath.Path(folder) / "last" / "1"
    if json.loads((path / record.RECORD / "metadata").read_text()) is None:
        (path / record.RECORD).rmtree()
    return {
        "stall": stall,
        "save": whole,
        "load": seconds(lambda: reading.read(path, record.TREES)),
    }


def compare(network: str, repeats: int) -> dict[str, Any]:
    """Measures with and without checksums, in turn.

    Args:
        network: Name in `harp_jax.models.MODELS`.
        repeats: Number of saves and loads of each kind, >= 1.

    Returns:
        Sizes, seconds by kind, and ratios.
    """
    variables, training = arrays(network)
    found: dict[str, list[dict[str, float]]] = {"checked": [], "unchecked": []}
    for number in range(2 * (repeats + 1)):  # the first of each kind starts threads and is dropped
        kind = ("checked", "unchecked")[number % 2]
        real = {"make": record.make, "problem": record.problem}
        used = real if kind == "checked" else dict.fromkeys(real, _nothing)
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(vars(record), used):
            found[kind].append(once(pathlib.Path(folder), variables, training))
    least = _each(min, found)
    leaves = jax.tree.leaves((variables, training))
    items = {"variables": variables, "training": training}
    sums = [seconds(lambda: record.make(items, None)) for _ in range(repeats)]
    return {
        "network": network,
        "arrays": len(leaves),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "repeats": repeats,
        "seconds": least,
        "median_seconds": _each(statistics.median, found),
        "seconds_of_checksums": min(sums),
        "ratio": {
            part: least["checked"][part] / least["unchecked"][part] for part in least["checked"]
        },
    }


def _each(of: Callable[[list[float]], float], found: dict[str, list[dict[str, float]]]) -> Any:
    """Returns a statistic of each part by kind, without the first run."""
    return {
        kind: {part: of([each[part] for each in runs[1:]]) for part in runs[0]}
        for kind, runs in found.items()
    }


def _nothing(*_: Any) -> None:
    """Stands for making or comparing a record."""


def main() -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50", help="network to measure (%(default)s)")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each side (%(default)s)")
    parser.add_argument("--out", type=pathlib.Path, default=OUT, help="file of results, JSON")
    options = parser.parse_args()
    found = compare(options.network, options.repeats)
    print(json.dumps(found, indent=2))
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
