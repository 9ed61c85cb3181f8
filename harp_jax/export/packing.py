"""Packs an array that is mostly one value: the positions of its other entries, and these entries.

Positions are packed as one bit for every entry of the array, or as gaps between kept entries,
whichever is smaller. Gaps are in Rice's code: the low bits of each gap as they are, and the rest
as so many ones and a zero. Bits fill bytes from the highest one.

Values are packed as planes: first the highest byte of each, then the second, and so on. A float's
sign moves behind its lowest bit, so that the first plane holds the exponents, which deflate well.
"""

import zlib
from typing import Any

import numpy as np

from harp_jax.export.errors import FileError

BITS = -1  # instead of a number of low bits
_MOST_LOW_BITS = 32


def pack_positions(kept: np.ndarray) -> tuple[int, bytes]:
    """Packs the positions of kept entries.

    Args:
        kept: Bool `[size]`.

    Returns:
        (coding, content): `BITS` or the number of low bits of each gap, in [0, 32]; and the packed
        positions, empty if all or none are kept.
    """
    positions = np.flatnonzero(kept)
    if len(positions) in (0, kept.size):
        return BITS, b""
    gaps = np.diff(positions, prepend=-1) - 1
    sizes = {low: _size(gaps, low) for low in range(int(gaps.max()).bit_length() + 1)}
    low = min(sizes, key=sizes.__getitem__)
    if -(-kept.size // 8) <= sizes[low]:
        return BITS, np.packbits(kept).tobytes()
    ones = gaps >> low
    unary = np.ones(int(ones.sum()) + len(gaps), bool)
    unary[np.cumsum(ones + 1) - 1] = False
    bits = gaps[:, None] >> np.arange(low)[::-1] & 1
    return low, np.packbits(unary).tobytes() + np.packbits(bits.astype(bool)).tobytes()


def _size(gaps: np.ndarray, low: int) -> int:
    """Counts the bytes of gaps with so many low bits."""
    unary = int((gaps >> low).sum()) + len(gaps)
    return -(-unary // 8) + -(-len(gaps) * low // 8)


def unpack_positions(coding: int, content: bytes, size: int, count: int) -> np.ndarray:
    """Unpacks the positions of kept entries; the inverse of `pack_positions`.

    Args:
        coding: `BITS` or a number of low bits.
        content: Packed positions.
        size: Entries of the array.
        count: Kept entries, in [0, size].

    Returns:
        Positions in rising order, int64 `[count]`.

    Raises:
        FileError: If the content is not that of so many positions.
    """
    if count in (0, size):
        _require(content == b"", "positions", len(content))
        return np.arange(count)
    if coding == BITS:
        positions = np.flatnonzero(_bits(content, size))
    else:
        _require(0 <= coding <= _MOST_LOW_BITS, "coding", coding)
        lows = -(-count * coding // 8)
        _require(lows < len(content), "positions", len(content))
        unary = _bits(content[: len(content) - lows], None)
        ends = np.flatnonzero(~unary)[:count]
        _require(len(ends) == count and len(unary) - int(ends[-1]) <= 8, "positions", len(ends))
        bits = _bits(content[len(content) - lows :], count * coding).reshape(count, coding)
        low = bits.astype(np.int64) @ (1 << np.arange(coding, dtype=np.int64)[::-1])
        high = np.diff(ends, prepend=-1) - 1
        positions = np.cumsum((high << coding) + low + 1) - 1
    _require(len(positions) == count and int(positions[-1]) < size, "positions", len(positions))
    return positions


def _bits(content: bytes, count: int | None) -> np.ndarray:
    _require(count is None or len(content) == -(-count // 8), "bytes of positions", len(content))
    return np.unpackbits(np.frombuffer(content, np.uint8), count=count).astype(bool)


def pack_values(values: np.ndarray) -> bytes:
    """Packs values as planes of bytes.

    Args:
        values: `[count]` of float32, bfloat16 or int8.

    Returns:
        The planes, count * itemsize bytes.
    """
    width = 8 * values.itemsize
    bits = values.view(f"uint{width}")
    if width > 8:
        bits = (bits << 1) | (bits >> (width - 1))
    return (
        bits.astype(f">u{values.itemsize}").view(np.uint8).reshape(-1, values.itemsize).T.tobytes()
    )


def unpack_values(content: bytes, dtype: Any) -> np.ndarray:
    """Unpacks values; the inverse of `pack_values`.

    Args:
        content: The planes; a whole number of values.
        dtype: Float32, bfloat16 or int8.

    Returns:
        Values `[count]`.
    """
    dtype = np.dtype(dtype)
    width = 8 * dtype.itemsize
    planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1)
    bits = np.ascontiguousarray(planes.T).view(f">u{dtype.itemsize}").astype(f"uint{width}").ravel()
    if width > 8:
        bits = (bits >> 1) | (bits << (width - 1))
    return bits.view(dtype)


def inflate(content: bytes, most: int, what: str) -> bytes:
    """Inflates zlib's bytes.

    Args:
        content: The deflated bytes.
        most: Most bytes that may come out, so that a small file cannot fill the memory.
        what: Name of the bytes, for errors.

    Returns:
        The bytes.

    Raises:
        FileError: If they are damaged, or more than `most`.
    """
    machine = zlib.decompressobj()
    try:
        found = machine.decompress(content, most + 1)
    except zlib.error as error:
        raise FileError(f"{what}: cannot be inflated ({error})") from error
    if len(found) > most or not machine.eof:
        raise FileError(f"{what}: more than the {most} bytes that the layout declares, or cut off")
    return found


def _require(condition: bool, what: str, value: Any) -> None:
    if not condition:
        raise FileError(f"{what}={value}: not what the layout declares")
