"""Writes a trained network to a file, after its logits were compared with the network's."""

import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from harp_jax import checkpoint
from harp_jax.export import (
    dense_file,
    onnx_file,
    sparse_file,
    stablehlo_file,
    torch_file,
    torch_names,
    trained,
)
from harp_jax.export.errors import FileError
from harp_jax.export.trained import Trained
from harp_jax.types import LogitsFn
from harp_jax.workdir import write_atomically

# Largest difference of two logits, over the largest logit.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.1}
IMAGES, BATCH = 128, 64
_RANDOM = 20230501  # seed of images where there are none


class Encoded(NamedTuple):
    """The content of a file, and what it computes.

    Attributes:
        files: Contents, by what is added to the file's name: '' is the file itself.
        logits_fn: The function that the content gives when it is read.
    """

    files: dict[str, bytes]
    logits_fn: LogitsFn


class Format(NamedTuple):
    """A format of files.

    Attributes:
        dtypes: Types that its kernels can have.
        encode: A function from a network and a type to `Encoded`.
    """

    dtypes: tuple[str, ...]
    encode: Callable[[Trained, str], Encoded]


class Written(NamedTuple):
    """A file that was written, and how its logits compare.

    Attributes:
        path: The file.
        bytes: Its size, with that of the file beside it, if there is one.
        difference: Largest difference between a logit of the file and of the network.
        largest: Largest absolute logit of the network.
        images: Number of images that were compared.
        real: Whether they were images of the run or of the caller, not random ones.
        metadata: What the file says about its network.
    """

    path: epath.Path
    bytes: int
    difference: float
    largest: float
    images: int
    real: bool
    metadata: dict[str, Any]


def _sparse(network: Trained, dtype: str) -> Encoded:
    content = sparse_file.encode(network, dtype)
    read = sparse_file.decode(content, network.metadata["model"])
    return Encoded({"": content}, read.logits_fn())


def _dense(network: Trained, dtype: str) -> Encoded:
    content = dense_file.encode(network, dtype)
    read = dense_file.decode(content, network.metadata["model"])
    return Encoded({"": content}, read.logits_fn())


def _stablehlo(network: Trained, dtype: str) -> Encoded:
    del dtype
    program, beside = stablehlo_file.encode(network)
    return Encoded(
        {"": program, stablehlo_file.BESIDE: beside}, stablehlo_file.decode(program, beside)[0]
    )


def _onnx(network: Trained, dtype: str) -> Encoded:
    del dtype
    content = onnx_file.encode(network)
    return Encoded({"": content}, onnx_file.function(content))


def _torch(network: Trained, dtype: str) -> Encoded:
    del dtype
    content = torch_file.encode(network)
    variables = torch_names.variables(network, torch_file.decode(content)[0])
    return Encoded({"": content}, network._replace(variables=variables).logits_fn())


FORMATS = {
    "sparse": Format(sparse_file.DTYPES, _sparse),
    "dense": Format(dense_file.DTYPES, _dense),
    "stablehlo": Format(stablehlo_file.DTYPES, _stablehlo),
    "onnx": Format(onnx_file.DTYPES, _onnx),
    "torch": Format(torch_file.DTYPES, _torch),
}


def write(
    source: epath.PathLike | Trained,
    file: epath.PathLike,
    format: str,
    *,
    dtype: str = "float32",
    model: str | None = None,
    images: Any = None,
) -> Written:
    """Writes a trained network to a file.

    The file's logits are compared with the network's before anything is written. The file is then
    written as a whole, so that a kill leaves the old one or the new one, and read back. 'stablehlo'
    writes two; a kill between them leaves a pair that `harp_jax.load` refuses.

    Args:
        source: A path that `harp_jax.load` takes, but no file of a network; a workdir means its
            last complete stage. Or a network that `read` has read.
        file: Path of the file; its folder is created if needed. 'stablehlo' writes FILE.json too.
        format: 'sparse', 'dense', 'stablehlo', 'onnx' or 'torch'.
        dtype: Type of the kernels: 'float32', with 'sparse' and 'dense' also 'bfloat16', with
            'sparse' also 'int8'. Everything else is float32.
        model: See `harp_jax.load`.
        images: Images to compare the logits on, `[batch, height, width, channels]` in [0, 1]. None
            means 128 test images of the run, or random ones if they are not on this machine.

    Returns:
        The file's size and the comparison.

    Raises:
        CheckpointError: If there is no network to write.
        FileError: If format or type are unknown, the network has no such file, or the file's logits
            differ: by more than 1e-4 of the largest logit, with bfloat16 by more than 0.05 of it,
            with int8 0.1.
        OSError: If the file cannot be written.
    """
    if format not in FORMATS:
        raise FileError(f"format={format!r}: allowed are {', '.join(FORMATS)}")
    allowed = FORMATS[format].dtypes
    if dtype not in allowed:
        raise FileError(f"dtype={dtype!r}: allowed with format={format!r} are {', '.join(allowed)}")
    network = source if isinstance(source, Trained) else trained.read(source, model=model)
    _check_numbers(network)
    real = True
    if images is None and not isinstance(source, Trained):
        images = trained.test_images(source, IMAGES)
    if images is None:
        real = False
        images = np.random.default_rng(_RANDOM).random((IMAGES, *network.image_shape), np.float32)
    elif np.shape(images)[1:] != network.image_shape or len(images) == 0:
        raise FileError(
            f"images={np.shape(images)}: allowed are some of the shape {network.image_shape}"
        )
    encoded = FORMATS[format].encode(network, dtype)
    reference = network.in_float32() if format == "onnx" else network
    largest, difference = _compare(reference.logits_fn(), encoded.logits_fn, images)
    if not (math.isfinite(largest) and difference <= TOLERANCES[dtype] * largest):
        raise FileError(
            f"format={format!r}, dtype={dtype!r}: logits differ by {difference:.3g}; allowed is"
            f" {TOLERANCES[dtype]:g} of the largest, {largest:.3g}"
        )
    path = checkpoint.absolute(file)
    places = {path.with_name(path.name + end): content for end, content in encoded.files.items()}
    for place in places:
        _check_place(place)
    for place, content in places.items():
        _write(place, content)
    size = sum(map(len, encoded.files.values()))
    return Written(path, size, difference, largest, len(images), real, reference.metadata)


def _check_numbers(network: Trained) -> None:
    for path, array in trained.flat(network.variables).items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise FileError(f"{path}: {array.dtype}; allowed are finite numbers of type float32")


def _compare(expected: LogitsFn, found: LogitsFn, images: Any) -> tuple[float, float]:
    """Returns the largest absolute logit, and the largest difference between two functions."""
    largest = difference = 0.0
    images = np.asarray(images, np.float32)
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        one, other = (np.asarray(function(batch)) for function in (expected, found))
        largest = max(largest, float(np.abs(one).max()))
        with np.errstate(invalid="ignore"):  # infinity less infinity
            distance = float(np.abs(one - other).max())
        difference = max(difference, math.inf if math.isnan(distance) else distance)
    return largest, difference


def _check_place(path: epath.Path) -> None:
    """Raises an OSError where a folder or a device stands, which a file must not replace."""
    local = pathlib.Path(path)  # epath takes a device for a file
    if local.exists() and not local.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise OSError(f"{path}: is {what}; allowed are files")


def _write(path: epath.Path, content: bytes) -> None:
    write_atomically(path, content)
    if jax.process_index() == 0 and path.read_bytes() != content:
        raise FileError(f"{path}: has other bytes than were written")
