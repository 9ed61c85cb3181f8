"""Packing: what comes out is what went in, for every array; damaged bytes are refused."""

import math
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harp_jax.export import FileError, packing

bits = arrays.arrays(bool, st.integers(0, 200))


def unpacked(kept):
    coding, content = packing.pack_positions(kept)
    return packing.unpack_positions(coding, content, kept.size, int(kept.sum()))


@given(bits)
def test_positions_come_back(kept):
    np.testing.assert_array_equal(unpacked(kept), np.flatnonzero(kept))


@given(st.integers(1, 10**6), st.sets(st.integers(0, 10**6 - 1), min_size=1, max_size=30))
def test_positions_far_apart_come_back(size, places):
    kept = np.zeros(size, bool)
    kept[[place % size for place in places]] = True
    np.testing.assert_array_equal(unpacked(kept), np.flatnonzero(kept))


@pytest.mark.parametrize(
    "kept",
    [[], [0], [1], [0] * 9, [1] * 9, [0] * 99 + [1], [1] + [0] * 99],
    ids=["empty", "none", "one", "nothing", "everything", "last", "first"],
)
def test_positions_at_the_ends_come_back(kept):
    kept = np.array(kept, bool)
    np.testing.assert_array_equal(unpacked(kept), np.flatnonzero(kept))


def test_all_or_nothing_needs_no_bytes():
    for kept in (np.zeros(999, bool), np.ones(999, bool), np.zeros(0, bool)):
        assert packing.pack_positions(kept) == (packing.BITS, b"")


def test_the_smaller_coding_is_taken():
    random = np.random.default_rng(0)
    for share in (0.001, 0.01, 0.1, 0.5):
        kept = random.random(20_000) < share
        coding, content = packing.pack_positions(kept)
        assert (coding == packing.BITS) == (share == 0.5)
        assert len(content) <= 2500
        entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
        assert 8 * len(content) < 1.08 * 20_000 * entropy + 60


@pytest.mark.parametrize(
    ("coding", "content", "size", "count"),
    [
        (packing.BITS, b"\xff", 9, 3),
        (packing.BITS, b"\xf0", 8, 3),
        (3, b"", 100, 2),
        (33, bytes(100), 100, 2),
        (-2, bytes(100), 100, 2),
        (0, b"\xff\xff", 100, 2),  # gaps without ends
        (0, b"\xff\xf1", 9, 2),  # beyond the array
        (0, bytes(9), 100, 2),
    ],
)
def test_other_bytes_are_no_positions(coding, content, size, count):
    with pytest.raises(FileError, match="not what the layout declares"):
        packing.unpack_positions(coding, content, size, count)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
@given(st.data())
def test_values_come_back_to_the_bit(dtype, data):
    width = 8 * np.dtype(dtype).itemsize
    raw = data.draw(arrays.arrays(f"uint{width}", st.integers(0, 50)))
    content = packing.pack_values(raw.view(dtype))
    assert len(content) == raw.nbytes
    found = packing.unpack_values(content, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.view(raw.dtype), raw)


def test_no_more_is_inflated_than_is_declared():
    bomb = zlib.compress(bytes(10**7))
    with pytest.raises(FileError, match="values: more than the 1000 bytes"):
        packing.inflate(bomb, 1000, "values")
    assert packing.inflate(zlib.compress(b"abc"), 3, "values") == b"abc"
    for damaged in (bomb[:50], b"abc", b""):
        with pytest.raises(FileError, match="values: "):
            packing.inflate(damaged, 10**8, "values")
