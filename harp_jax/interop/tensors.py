"""Tensors of a checkpoint, described by the file and read when they are wanted."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from harp_jax.export.errors import FileError

# By PyTorch's name of the storage.
DTYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_MOST_AXES = 8


class Storage(NamedTuple):
    """Numbers that tensors are views of.

    Attributes:
        dtype: Their type.
        count: How many.
        read: Reads their bytes from the file.
        order: '<' or '>', the order of a number's bytes.
    """

    dtype: np.dtype
    count: int
    read: Callable[[], bytes | bytearray]
    order: str = "<"


class Tensor(NamedTuple):
    """A view of a storage; `tensor` checks that it is inside.

    Attributes:
        storage: The numbers.
        offset: Place of the first one.
        shape: Sizes of the axes.
        strides: Steps along the axes, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Type of the numbers."""
        return self.storage.dtype

    def array(self) -> np.ndarray:
        """Reads the numbers, as an array of its own in this machine's byte order.

        Raises:
            FileError: If the file has another number of bytes than it says.
        """
        dtype, content = self.dtype, self.storage.read()
        if len(content) != self.storage.count * dtype.itemsize:
            raise FileError(
                f"damaged: {len(content)} bytes of a storage; allowed are the"
                f" {self.storage.count * dtype.itemsize} that it declares"
            )
        bits = np.frombuffer(content, f"{self.storage.order}u{dtype.itemsize}")
        bits = bits.astype(bits.dtype.newbyteorder("="), copy=False)
        steps = [stride * dtype.itemsize for stride in self.strides]
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        view = np.lib.stride_tricks.as_strided(bits[self.offset :], self.shape, steps)
        return np.ascontiguousarray(view).view(dtype).reshape(self.shape)


def tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> Tensor:
    """Makes a tensor of what a file says.

    Args:
        storage: The storage.
        offset: Place of the first number.
        shape: Sizes of the axes.
        strides: Steps along the axes.

    Returns:
        The tensor.

    Raises:
        FileError: If it would reach outside of its storage, or repeat numbers of it.
    """
    if not isinstance(storage, Storage):
        raise FileError("damaged: a tensor without a storage")
    axes = [(shape, "shape"), (strides, "strides")]
    for numbers, name in axes:
        if not isinstance(numbers, tuple) or not all(_is_count(n) for n in numbers):
            raise FileError(f"damaged: a tensor's {name}; allowed are whole numbers >= 0")
    if not _is_count(offset) or len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise FileError(f"damaged: a tensor's axes; allowed are up to {_MOST_AXES}")
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if size and (last >= storage.count or size > storage.count):
        raise FileError(
            f"damaged: a tensor of {size} numbers from {offset} to {last}; allowed are those of"
            f" its storage, {storage.count}"
        )
    return Tensor(storage, offset, shape, strides)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48
