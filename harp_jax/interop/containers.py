"""Opens checkpoints of every kind of file: what is in them, as dicts of tensors not yet read.

- PyTorch's zip archives (since 1.6): data.pkl, and the bytes of every storage, uncompressed;
- PyTorch's older files: five pickles, then the bytes of every storage;
- safetensors.

Sizes that a file declares are compared with those that it has before anything is read.
"""

import contextlib
import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors
from etils import epath
from ml_dtypes import bfloat16

from harp_jax.export.errors import FileError, one_line
from harp_jax.interop import pickles
from harp_jax.interop.pickles import Name
from harp_jax.interop.report import printable
from harp_jax.interop.tensors import DTYPES, Storage, tensor

MOST_BYTES = 2**33  # of a file
MOST_ENTRIES = 20_000  # of an archive
_MOST_NUMBERS = 2**40
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's older files
_SAFETENSORS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_KINDS = "PyTorch's zip archives and older files (.pth, .pt, .pth.tar) and safetensors"


@contextlib.contextmanager
def opened(path: epath.Path) -> Iterator[Any]:
    """Opens a checkpoint; its tensors can be read until the file is closed at the end.

    Args:
        path: The file.

    Yields:
        What is in it, see `pickles.read`; of safetensors a dict of tensors.

    Raises:
        FileError: If it is of no known kind, damaged, too large, or has anything but data.
    """
    try:
        if not path.is_file():
            raise FileError("is no file; allowed are files of " + _KINDS)
        size = path.stat().length
        if size > MOST_BYTES:
            raise FileError(f"has {size:,} bytes; allowed are {MOST_BYTES:,} at most")
        with path.open("rb") as file:
            yield _content(file, size)
    except FileError:
        raise
    except (
        EOFError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
        safetensors.SafetensorError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        raise FileError(f"damaged: {one_line(error)[:160]}") from error


def _content(file: Any, size: int) -> Any:
    head = file.read(264)
    file.seek(0)
    if head.startswith(b"PK"):
        return _zip(file, size)
    if head.startswith(b"\x80"):
        return _older(file, size)
    if head[8:9] == b"{":
        return _safetensors(file.read())
    if head[257:262] == b"ustar":
        raise FileError(
            "is a tar archive, PyTorch's oldest format; allowed are such files loaded and saved"
            " again by PyTorch"
        )
    raise FileError("is no checkpoint; allowed are " + _KINDS)


def _zip(file: Any, size: int) -> Any:
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    if any(re.fullmatch("[^/]+/(constants[.]pkl|code/.*)", each.filename) for each in entries):
        raise FileError("is a TorchScript program; allowed are files of torch.save(state_dict)")
    _check_entries(entries, size)
    by_name = {entry.filename: entry for entry in entries}
    pickled = [name for name in by_name if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise FileError("is a zip archive without PyTorch's data.pkl; allowed are " + _KINDS)
    root = pickled[0].removesuffix("data.pkl")
    order = b"little"
    if f"{root}byteorder" in by_name:
        order = archive.open(f"{root}byteorder").read(10)
    if order not in (b"little", b"big"):
        raise FileError(f"byteorder={order!r}: allowed are little and big")
    sign = "<" if order == b"little" else ">"

    def persistent(found: tuple[Any, ...]) -> Storage:
        dtype, key, count, _ = _declared(found)
        entry = by_name.get(f"{root}data/{key}")
        if entry is None or entry.file_size != count * dtype.itemsize:
            has = "nothing" if entry is None else f"{entry.file_size} bytes"
            raise FileError(f"damaged: has {has} for a storage of {count} numbers of {dtype.name}")
        return Storage(dtype, count, lambda: archive.read(entry), sign)

    return pickles.read(_stream(archive, by_name[pickled[0]]), persistent)


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MOST_ENTRIES:
        raise FileError(f"has {len(entries):,} entries; allowed are {MOST_ENTRIES:,} at most")
    if len({entry.filename for entry in entries}) < len(entries):
        raise FileError("has two entries of one name; allowed is one")
    for entry in entries:
        packed = entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        if packed or entry.flag_bits & 1:
            raise FileError(
                f"entry {entry.filename[:80]!r} is compressed or encrypted; allowed are plain ones,"
                " as PyTorch writes"
            )
    declared = sum(entry.file_size for entry in entries)
    if declared > size:
        raise FileError(f"declares {declared:,} bytes; allowed are the {size:,} that it has")


def _stream(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> io.BytesIO:
    if entry.file_size > pickles.MOST_BYTES:
        raise FileError(
            f"pickle: has {entry.file_size:,} bytes; allowed are {pickles.MOST_BYTES:,} at most"
        )
    return io.BytesIO(archive.read(entry))


def _declared(found: tuple[Any, ...]) -> tuple[np.dtype, str, int, Any]:
    """Returns type, key, size and view of a storage, as a pickle refers to it."""
    if len(found) not in (5, 6):
        raise FileError("damaged: a reference to something that is no storage")
    word, kind, key, _, count, *view = found
    name = kind.text.removeprefix("torch.") if isinstance(kind, Name) else ""
    if word != "storage" or name not in DTYPES or not isinstance(key, str):
        raise FileError("damaged: a reference to something that is no storage")
    if type(count) is not int or not 0 <= count <= _MOST_NUMBERS:
        raise FileError(f"damaged: a storage of {str(count)[:20]} numbers")
    return DTYPES[name], key, count, view[0] if view else None


def _older(file: Any, size: int) -> Any:
    magic = pickles.read(file, _nothing)
    if magic != _MAGIC:
        raise FileError("is a pickle, but not PyTorch's; allowed are " + _KINDS)
    version, system = pickles.read(file, _nothing), pickles.read(file, _nothing)
    if version != 1001 or not isinstance(system, dict):
        raise FileError(f"version={str(version)[:20]} of PyTorch's older files: allowed is 1001")
    order = "<" if system.get("little_endian") is True else ">"
    declared: dict[str, tuple[np.dtype, int]] = {}
    places: dict[str, int] = {}

    def persistent(found: tuple[Any, ...]) -> Storage:
        dtype, key, count, view = _declared(found)
        if declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise FileError("damaged: two forms of one storage")
        start, length = _viewed(view, count)

        def read() -> bytes:
            file.seek(places[key] + 8 + start * dtype.itemsize)
            return file.read(length * dtype.itemsize)

        return Storage(dtype, length, read, order)

    content = pickles.read(file, persistent)
    keys = pickles.read(file, _nothing)
    _find_places(file, size, keys, declared, places, order)
    return content


def _find_places(
    file: Any,
    size: int,
    keys: Any,
    declared: dict[str, tuple[np.dtype, int]],
    places: dict[str, int],
    order: str,
) -> None:
    """Finds where the storages are that stand behind the pickles of an older file."""
    if not isinstance(keys, list) or {*map(repr, keys)} != {*map(repr, declared)}:
        raise FileError("damaged: its list of storages")
    place = file.tell()
    for key in keys:
        dtype, count = declared[key]
        file.seek(place)
        here = int.from_bytes(file.read(8), "little" if order == "<" else "big")
        if here != count:
            raise FileError(f"damaged: a storage of {here} numbers; allowed are {count}")
        places[key] = place
        place += 8 + count * dtype.itemsize
    if place > size:
        raise FileError(f"damaged: is cut off at {size:,} of {place:,} bytes")


def _viewed(view: Any, count: int) -> tuple[int, int]:
    """Returns offset and size of the part of a storage that a reference means."""
    if view is None:
        return 0, count
    if not isinstance(view, tuple) or len(view) != 3:
        raise FileError("damaged: a part of a storage without its place")
    _, start, length = view
    whole = type(start) is int and type(length) is int
    if not whole or not 0 <= start <= start + length <= count:
        raise FileError("damaged: a part of a storage that is outside of it")
    return start, length


def _nothing(found: tuple[Any, ...]) -> Storage:
    raise FileError("damaged: a storage in front of the tensors")


def _safetensors(content: bytes) -> dict[str, Any]:
    found = {}
    for name, entry in safetensors.deserialize(content):
        if entry["dtype"] not in _SAFETENSORS:
            raise FileError(
                f"{printable(name)}: has the type {entry['dtype']}; allowed are"
                f" {', '.join(_SAFETENSORS)}"
            )
        dtype, shape = _SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
        data = entry["data"]
        storage = Storage(dtype, len(data) // dtype.itemsize, _held(data))
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        found[name] = tensor(storage, 0, shape, strides)
    return found


def _held(data: bytes | bytearray) -> Callable[[], bytes | bytearray]:
    return lambda: data
