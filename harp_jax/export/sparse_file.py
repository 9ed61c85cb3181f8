"""The format 'sparse': only kept weights and their positions, in safetensors.

Three arrays of bytes, each deflated by zlib:

    layout      JSON: for every array [path, shape, kept entries, coding, bytes of positions]
    positions   of every array in that order; see `packing`
    values      those of all arrays but the kernels, then the scales, as float32; then those of the
                kernels, in the file's type

Entries that are not kept are 0, in a 'var' they are 1. An int8 value is multiplied by its output
channel's scale, largest value / 127; outputs without a kept weight have no scale.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np

from harp_jax.export import container, packing
from harp_jax.export.errors import FileError, one_line
from harp_jax.export.trained import Trained, flat, rebuilt
from harp_jax.export.unread import without_unread

NAME, VERSION = "harp_jax.sparse", 1
DTYPES = ("float32", "bfloat16", "int8")
MOST_ENTRIES = 2**31  # of all arrays: 8 GiB
_MOST_LAYOUT = 2**24  # bytes
_KERNEL_TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}


class _Array(NamedTuple):
    """A row of the layout.

    Attributes:
        path: For example 'params/conv1/kernel'.
        shape: Its sizes.
        count: Number of kept entries.
        coding: See `packing.pack_positions`.
        bytes: Bytes of packed positions.
    """

    path: str
    shape: tuple[int, ...]
    count: int
    coding: int
    bytes: int

    @property
    def fill(self) -> float:
        """The value of entries that are not kept."""
        return 1.0 if self.path.endswith("/var") else 0.0

    @property
    def is_kernel(self) -> bool:
        """Whether its values have the file's type; all others are float32."""
        return self.path.endswith("/kernel")


def encode(trained: Trained, dtype: str = "float32") -> bytes:
    """Makes the content of a sparse file.

    Args:
        trained: The network.
        dtype: Type of the kept weights, one of `DTYPES`.

    Returns:
        The content.
    """
    kept = without_unread(trained.network, trained.variables, trained.image_shape)
    rows, positions, plain, scales, kernels = [], [], [], [], []
    for path, array in flat(kept).items():
        row, content, values = _pack(path, array)
        rows.append([*row])
        positions.append(content)
        if not row.is_kernel:
            plain.append(values)
        elif dtype == "int8":
            outputs = _outputs(row, content)
            scale = _scales(values, outputs, array.shape[-1])
            scales.append(scale[np.unique(outputs)])
            kernels.append(np.rint(values / scale[outputs]))
        else:
            kernels.append(values)
    first = np.concatenate([np.zeros(0), *plain, *scales]).astype(np.float32)
    second = np.concatenate([np.zeros(0), *kernels]).astype(_KERNEL_TYPES[dtype])
    streams = {
        "layout": container.as_json(rows).encode(),
        "positions": b"".join(positions),
        "values": packing.pack_values(first) + packing.pack_values(second),
    }
    arrays = {
        name: np.frombuffer(zlib.compress(content, 9), np.uint8)
        for name, content in streams.items()
    }
    metadata = {**trained.metadata, "format": NAME, "version": VERSION, "dtype": dtype}
    return container.encode(arrays, metadata)


def _pack(path: str, array: np.ndarray) -> tuple[_Array, bytes, np.ndarray]:
    """Returns the row, the packed positions and the kept values of an array."""
    row = _Array(path, array.shape, 0, packing.BITS, 0)
    kept = array.ravel() != row.fill
    coding, content = packing.pack_positions(kept)
    row = row._replace(count=int(kept.sum()), coding=coding, bytes=len(content))
    return row, content, array.ravel()[kept]


def _positions(row: _Array, content: bytes) -> np.ndarray:
    return packing.unpack_positions(row.coding, content, math.prod(row.shape), row.count)


def _outputs(row: _Array, content: bytes) -> np.ndarray:
    """Returns the output channel of every kept value of a kernel."""
    return _positions(row, content) % row.shape[-1]


def _scales(values: np.ndarray, outputs: np.ndarray, count: int) -> np.ndarray:
    """Returns the scale of every output channel, 0 where it has no kept value."""
    largest = np.zeros(count, np.float32)
    np.maximum.at(largest, outputs, np.abs(values))
    return largest / np.float32(127)


def decode(content: bytes, model: str | None = None) -> Trained:
    """Reads the content of a sparse file.

    Args:
        content: The whole file.
        model: See `harp_jax.load`.

    Returns:
        The network, with the float32 values of the kept weights.

    Raises:
        FileError: If the file is damaged, or not of a network of this package or `model`.
    """
    arrays, metadata = container.decode(content)
    container.check_format(metadata, NAME, VERSION)
    dtype = metadata.get("dtype")
    if dtype not in DTYPES or arrays.keys() != {"layout", "positions", "values"}:
        raise FileError(f"dtype={dtype!r}: allowed are {', '.join(DTYPES)}, in three arrays")
    streams = {name: array.tobytes() for name, array in arrays.items()}
    rows = _layout(packing.inflate(streams["layout"], _MOST_LAYOUT, "layout"))
    shapes = {row.path: row.shape for row in rows}
    return rebuilt(shapes, lambda: _arrays(rows, streams, dtype), metadata, model)


def _arrays(rows: list[_Array], streams: Mapping[str, bytes], dtype: str) -> dict[str, np.ndarray]:
    """Unpacks every array."""
    declared = sum(row.bytes for row in rows)
    packed = packing.inflate(streams["positions"], declared, "positions")
    if len(packed) != declared:
        raise FileError(f"positions: {len(packed)} bytes; the layout declares {declared}")
    positions, start = [], 0
    for row in rows:
        positions.append(_positions(row, packed[start : start + row.bytes]))
        start += row.bytes
    values = _values(rows, positions, streams["values"], dtype)
    arrays = {}
    for row, place, value in zip(rows, positions, values, strict=True):
        array = np.full(math.prod(row.shape), row.fill, np.float32)
        array[place] = value
        arrays[row.path] = array.reshape(row.shape)
    return arrays


def _layout(content: bytes) -> list[_Array]:
    """Reads the rows of the layout, and refuses sizes that cannot be."""
    try:
        rows = [_Array(path, tuple(shape), *rest) for path, shape, *rest in json.loads(content)]
    except (RecursionError, TypeError, ValueError) as error:
        raise FileError(f"layout: not a table of arrays ({one_line(error)})") from error
    entries = 0
    for row in rows:
        numbers = [*row.shape, row.count, row.bytes]
        whole = all(type(n) is int and n >= 0 for n in numbers) and type(row.coding) is int
        if not isinstance(row.path, str) or not whole or row.count > math.prod(row.shape):
            raise FileError(f"layout: {[*row]} is not an array")
        if row.bytes > -(-math.prod(row.shape) // 8):  # a bit for each entry takes no more
            raise FileError(f"layout: {[*row]} has more positions than entries")
        entries += math.prod(row.shape)
    if entries > MOST_ENTRIES:
        raise FileError(f"layout: {entries} entries; allowed are at most {MOST_ENTRIES}")
    if len({row.path for row in rows}) != len(rows):
        raise FileError("layout: has an array twice; allowed is once")
    return rows


def _values(
    rows: list[_Array], positions: list[np.ndarray], content: bytes, dtype: str
) -> list[np.ndarray]:
    """Unpacks the float32 values of every array."""
    outputs = [
        place % row.shape[-1] if row.is_kernel and dtype == "int8" else np.zeros(0, int)
        for row, place in zip(rows, positions, strict=True)
    ]
    scaled = [np.unique(each) for each in outputs]
    plain = sum(row.count for row in rows if not row.is_kernel)
    first = plain + sum(map(len, scaled))
    second = sum(row.count for row in rows if row.is_kernel)
    kind = np.dtype(_KERNEL_TYPES[dtype])
    expected = 4 * first + kind.itemsize * second
    unpacked = packing.inflate(content, expected, "values")
    if len(unpacked) != expected:
        raise FileError(f"values: {len(unpacked)} bytes; the layout declares {expected}")
    floats = packing.unpack_values(unpacked[: 4 * first], np.float32)
    kernels = packing.unpack_values(unpacked[4 * first :], kind).astype(np.float32)
    plain_values, scales = _reader(floats[:plain]), _reader(floats[plain:])
    kernel_values, found = _reader(kernels), []
    for row, output, used in zip(rows, outputs, scaled, strict=True):
        if not row.is_kernel:
            found.append(plain_values(row.count))
            continue
        value = kernel_values(row.count)
        if dtype == "int8":
            value = value * scales(len(used))[np.searchsorted(used, output)]
        found.append(value)
    return found


def _reader(values: np.ndarray) -> Callable[[int], np.ndarray]:
    """Returns a function that takes the next so many values."""
    taken = 0

    def take(count: int) -> np.ndarray:
        nonlocal taken
        taken += count
        return values[taken - count : taken]

    return take
