"""The format 'torch': a PyTorch checkpoint, written without PyTorch.

    torch.load(FILE, weights_only=True)["state_dict"]

has the names of the authors' networks, see `torch_names`; 'arch' is the network's name and
'metadata' a JSON text. Masks are applied: pruned weights are 0.

The file is an uncompressed zip archive: data.pkl, a pickle of the dict in which every tensor refers
to a storage, and each storage's bytes in data/NUMBER. The pickle is put together from its few
opcodes here, because Python's pickler can name only classes that it can import.
"""

import collections
import hashlib
import io
import json
import pickle
import zipfile
from typing import Any

import numpy as np

from harp_jax.export import container, torch_names
from harp_jax.export.errors import FileError, one_line
from harp_jax.export.trained import Trained

NAME, VERSION = "harp_jax.torch", 1
DTYPES = ("float32",)
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}
_ROOT = "archive"
_WRITTEN = (1980, 1, 1, 0, 0, 0)  # so that the same network gives the same bytes
_ORDERED = b"ccollections\nOrderedDict\n)R"


def encode(trained: Trained) -> bytes:
    """Makes the content of a PyTorch checkpoint.

    Args:
        trained: A network of `harp_jax.models.MODELS`.

    Returns:
        The content.

    Raises:
        FileError: For a network that has no twin in PyTorch.
    """
    arrays = torch_names.state_dict(trained)
    metadata = {**trained.metadata, "format": NAME, "version": VERSION}
    metadata["digest"] = _digest(arrays)  # of names and arrays
    pickled = [b"\x80\x02}("]
    pickled += [_text("arch"), _text(trained.metadata["model"])]
    pickled += [_text("metadata"), _text(json.dumps(metadata, allow_nan=False))]
    pickled += [_text("state_dict"), _ORDERED, b"("]
    for number, (name, array) in enumerate(arrays.items()):
        pickled += [_text(name), _tensor(number, array)]
    pickled.append(b"uu.")
    entries = {"data.pkl": b"".join(pickled), "byteorder": b"little"}
    entries |= {f"data/{number}": _bytes(each) for number, each in enumerate(arrays.values())}
    entries["version"] = b"3\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}", _WRITTEN), content)
    return file.getvalue()


def _bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _digest(arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(container.as_json([name, array.dtype.name, array.shape]).encode())
        found.update(_bytes(array))
    return found.hexdigest()


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + len(content).to_bytes(4, "little") + content


def _number(number: int) -> bytes:
    return b"J" + number.to_bytes(4, "little", signed=True)


def _tensor(number: int, array: np.ndarray) -> bytes:
    """Pickles a call of `torch._utils._rebuild_tensor_v2`.

    Its arguments: the storage, the offset, sizes and strides, requires_grad and hooks.
    """
    strides = [stride // array.itemsize for stride in array.strides]
    storage = (
        b"("
        + _text("storage")
        + f"ctorch\n{_STORAGES[array.dtype.name]}\n".encode()
        + _text(str(number))
        + _text("cpu")
        + _number(array.size)
        + b"tQ"
    )
    sizes, steps = (b"(" + b"".join(map(_number, each)) + b"t" for each in (array.shape, strides))
    arguments = storage + _number(0) + sizes + steps + b"\x89" + _ORDERED
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def own_metadata(entries: Any) -> dict[str, Any] | None:
    """Finds what `encode` said of a network.

    Args:
        entries: What is in a checkpoint.

    Returns:
        The metadata; None if another program wrote it.

    Raises:
        FileError: If they are of a version that is not known.
    """
    try:
        metadata = json.loads(entries["metadata"])
        if metadata["format"] != NAME:
            return None
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    container.check_format(metadata, NAME, VERSION)
    return metadata


def decode(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file that `encode` made, with nothing but NumPy.

    Args:
        content: The whole file.

    Returns:
        (arrays, metadata): arrays by PyTorch's names.

    Raises:
        FileError: If it is no such file, or damaged.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = _Reader(archive).load()
        arrays, metadata = dict(found["state_dict"]), json.loads(found["metadata"])
        container.check_format(metadata, NAME, VERSION)
    except (
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise FileError(f"damaged: {one_line(error)}") from error
    if metadata.get("digest") != _digest(arrays):
        raise FileError("damaged: its content is not what its digest says")
    return arrays, metadata


class _Reader(pickle.Unpickler):
    """Unpickles the dict; knows four names and imports nothing."""

    def __init__(self, archive: zipfile.ZipFile):
        super().__init__(io.BytesIO(archive.read(f"{_ROOT}/data.pkl")))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Any] = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuilt,
            **{f"torch.{storage}": dtype for dtype, storage in _STORAGES.items()},
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"{module}.{name}: not a name of a PyTorch checkpoint")
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, number, _, _ = pid
        content = self._archive.read(f"{_ROOT}/data/{number}")
        return np.frombuffer(content, np.dtype(dtype).newbyteorder("<"))


def _rebuilt(storage: np.ndarray, offset: int, sizes: Any, strides: Any, *_: Any) -> np.ndarray:
    steps = [storage.itemsize * stride for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], sizes, steps).copy()
