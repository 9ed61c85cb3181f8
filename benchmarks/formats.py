"""Compares the logits of every format of files with those of the masked network, on real images.

    python -m benchmarks.formats runs/cnn runs/vgg16_bn runs/resnet18

Each is the workdir of a finished run. The images are the first 1,000 of its test split, the logits
to compare with are those of its last stage in JAX, masks applied. Every file is written by
`harp_jax.export.write` and read by what is to read it: a sparse one by `harp_jax.load`, a StableHLO
program by a process that cannot import this package, an ONNX graph by ONNX Runtime and OpenVINO, a
state dict by PyTorch's own layers. 'compact' is no file: its bytes are those of its arrays.

OpenVINO and PyTorch are asked for nowhere else (`pip install openvino torch`); rows of packages
that are missing are left out, and named.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import harp_jax
from harp_jax import export
from harp_jax.export.trained import test_images

RESULTS = pathlib.Path(__file__).parent / "results" / "formats.json"
COUNT, BATCH, CHECKED = 1000, 100, 128
NEEDED = ("jax", "onnxruntime", "openvino", "torch")

# Runs in a process of its own: a program, images, and where to write the logits.
WITHOUT_PACKAGE = """
import sys


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("harp_jax", "flax"):
            raise ImportError(f"{name} cannot be imported here")


sys.meta_path.insert(0, Blocker())
try:
    import harp_jax
except ImportError as error:
    print(error)
else:
    sys.exit("harp_jax can be imported")

import jax.export
import numpy as np

program, images, logits, batch = sys.argv[1:]
with open(program, "rb") as file:
    call = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
images, batch = np.load(images), int(batch)
parts = [np.asarray(call(images[i : i + batch])) for i in range(0, len(images), batch)]
np.save(logits, np.concatenate(parts))
assert not any(name.partition(".")[0] in ("harp_jax", "flax") for name in sys.modules)
"""


class Job(NamedTuple):
    """What every side gets.

    Attributes:
        network: The masked network.
        images: Float32 [N, height, width, channels] in [0, 1].
        folder: For files.
    """

    network: export.Trained
    images: np.ndarray
    folder: pathlib.Path

    def write(self, format: str, dtype: str = "float32") -> tuple[pathlib.Path, int]:
        """Writes a file; returns its path and size in bytes."""
        file = self.folder / f"{format}-{dtype}"
        done = export.write(self.network, file, format, dtype=dtype, images=self.images[:CHECKED])
        return file, done.bytes

    def in_batches(self, function: Callable[[Any], Any]) -> np.ndarray:
        """Returns the logits of all images."""
        parts = [
            np.asarray(function(self.images[first : first + BATCH]))
            for first in range(0, len(self.images), BATCH)
        ]
        return np.concatenate(parts)


class Side(NamedTuple):
    """What a format computes: logits of all images, bytes, and what else is to be told."""

    logits: np.ndarray
    bytes: int
    more: dict[str, Any] | None = None


def loaded(job: Job, format: str, dtype: str) -> Side:
    """Reads a safetensors file with `harp_jax.load`."""
    file, size = job.write(format, dtype)
    return Side(job.in_batches(harp_jax.load(file)[0]), size)


def stablehlo(job: Job) -> Side:
    """Runs the program where this package cannot be imported."""
    file, size = job.write("stablehlo")
    images, logits = job.folder / "images.npy", job.folder / "logits.npy"
    np.save(images, job.images)
    arguments = [*map(str, (file, images, logits)), str(BATCH)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_PACKAGE, *arguments],
        cwd=job.folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return Side(np.load(logits), size, {"import_harp_jax": done.stdout.strip()})


def onnxruntime(job: Job) -> Side:
    """Runs the graph in ONNX Runtime."""
    import onnxruntime

    file, size = job.write("onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return Side(job.in_batches(lambda x: session.run(["logits"], {"images": x})[0]), size)


def openvino(job: Job, settings: dict[str, str]) -> Side:
    """Runs the graph in OpenVINO on the CPU."""
    import openvino  # pyright: ignore[reportMissingImports]

    file, size = job.write("onnx")
    graph = openvino.Core().compile_model(str(file), "CPU", settings)
    precision = graph.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Side(job.in_batches(lambda x: graph(x)[0]), size, {"precision": precision})


def pytorch(job: Job) -> Side:
    """Loads the state dict into PyTorch's own layers, every name and shape of it."""
    import torch  # pyright: ignore[reportMissingImports]

    from benchmarks import torch_networks

    file, size = job.write("torch")
    network = torch_networks.NETWORKS[job.network.metadata["model"]]().eval()
    state = torch.load(file, weights_only=True)["state_dict"]
    network.load_state_dict(state, strict=True)

    def logits(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()

    return Side(job.in_batches(logits), size)


def compacted(job: Job) -> Side:
    """Runs the network without the units that do nothing."""
    small = export.compact(job.network.network, job.network.variables, job.images[:CHECKED])
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(small.variables))
    return Side(job.in_batches(jax.jit(small.logits_fn)), size)


# (format, type or precision that is asked for): the package it needs, and its side.
SIDES: dict[tuple[str, str], tuple[str, Callable[[Job], Side]]] = {
    **{
        (format, dtype): ("jax", functools.partial(loaded, format=format, dtype=dtype))
        for format, dtype in (
            ("dense", "float32"),
            ("sparse", "float32"),
            ("sparse", "bfloat16"),
            ("sparse", "int8"),
        )
    },
    ("stablehlo", "float32"): ("jax", stablehlo),
    ("onnx in ONNX Runtime", "float32"): ("onnxruntime", onnxruntime),
    ("onnx in OpenVINO", "float32"): (
        "openvino",
        functools.partial(openvino, settings={"INFERENCE_PRECISION_HINT": "f32"}),
    ),
    ("onnx in OpenVINO", "its default"): ("openvino", functools.partial(openvino, settings={})),
    ("torch in PyTorch", "float32"): ("torch", pytorch),
    ("compact", "float32"): ("jax", compacted),
}


def compare(workdir: str) -> dict[str, Any]:
    """Compares all formats of a run's network; returns what is written of it.

    Raises:
        SystemExit: If the run's images are not here, or its network tells no classes apart.
    """
    network, images = export.read(workdir), test_images(workdir, COUNT)
    if images is None:
        raise SystemExit(f"{workdir}: its images are not on this machine")
    with tempfile.TemporaryDirectory() as folder:
        job = Job(network, images, pathlib.Path(folder))
        expected = job.in_batches(harp_jax.load(workdir)[0])
        counts = np.bincount(expected.argmax(-1), minlength=expected.shape[-1])
        if counts.max() == len(images):
            raise SystemExit(f"{workdir}: the network says the same of all {len(images)} images")
        found = {
            "network": network.metadata["model"],
            "data": network.metadata["dataset"],
            "weights": network.metadata["weights"],
            "kept": network.metadata["kept"],
            "images": len(images),
            "images_of_each_predicted_class": counts.tolist(),
            "largest_logit": float(np.abs(expected).max()),
            "formats": [],
        }
        dense = job.write("dense")[1]
        for (format, precision), (package, side) in SIDES.items():
            if importlib.util.find_spec(package) is None:
                print(f"{format}, {precision}: left out, {package} is not installed", flush=True)
                continue
            row = {"format": format, "type": precision, **differences(expected, side(job), dense)}
            print(json.dumps({"network": found["network"], **row}), flush=True)
            found["formats"].append(row)
    return found


def differences(expected: np.ndarray, side: Side, dense: int) -> dict[str, Any]:
    """Compares logits, and a size with that of the dense file, in bytes."""
    largest = np.abs(expected).max()
    return {
        "difference": float(np.abs(side.logits - expected).max() / largest),
        "argmax_changes": int((side.logits.argmax(-1) != expected.argmax(-1)).sum()),
        "bytes": side.bytes,
        "share": side.bytes / dense,
        **(side.more or {}),
    }


def main() -> None:
    """Compares, prints each row, and writes benchmarks/results/formats.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", help="folders of finished runs")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="file of results, JSON")
    flags = parser.parse_args()
    versions = {
        name: importlib.metadata.version(name) for name in NEEDED if importlib.util.find_spec(name)
    }
    networks = [compare(workdir) for workdir in flags.workdirs]
    content = {"versions": versions, "networks": networks}
    flags.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
