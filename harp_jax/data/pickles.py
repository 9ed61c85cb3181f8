"""Reading pickled NumPy arrays without running any code that the file names.

A pickle is a program: what it names is imported and called. Here, all names but those of a plain
array are refused, and these lead to stand-ins that only keep what they are given.
"""

import io
import pickle
from typing import Any

import numpy as np

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Kept:
    """Stands in for an array or its type: keeps the arguments and the state, does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Kept:
    return _Kept()


def _encode(text: Any, *_: Any) -> bytes:
    """Returns the bytes that protocol 2 writes as text, one character each."""
    return str(text).encode("latin1")


_ALLOWED = {
    **{(module, "_reconstruct"): _reconstruct for module in _NUMPY},
    ("numpy", "ndarray"): _Kept,
    ("numpy", "dtype"): _Kept,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}; allowed are arrays alone")
        return _ALLOWED[module, name]


def load(data: bytes) -> Any:
    """Loads a pickle of dicts, lists, numbers, bytes and arrays of bytes.

    Args:
        data: The pickle, of any protocol up to 4.

    Returns:
        Its content; text of Python 2 as bytes, and arrays as `as_bytes` takes them.

    Raises:
        ValueError: If it names anything else or is damaged; the message says why.
    """
    try:
        return _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise anything
        raise ValueError(str(error) or type(error).__name__) from error


def as_bytes(value: Any) -> np.ndarray:
    """Returns an array of bytes that `load` found.

    Args:
        value: What stands where the array should be.

    Returns:
        The array, uint8, of its stored shape.

    Raises:
        ValueError: If it is not an array of bytes in C order.
    """
    match value:
        case _Kept(state=(_, tuple(shape), _Kept(arguments=(kind, *_)), False, bytes(data))):
            if kind in (b"u1", "u1"):
                return np.frombuffer(data, np.uint8).reshape(shape)
    raise ValueError("no array of uint8 in C order")
