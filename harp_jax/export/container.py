"""Files of arrays and metadata: safetensors with a digest of everything in them.

Metadata are JSON values, each as a text, because safetensors holds texts only. 'digest' is the
SHA-256 of all other metadata and all arrays, in hexadecimal.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from harp_jax.export.errors import FileError, one_line

_TYPES = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U8": np.dtype(np.uint8),
}


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> bytes:
    """Makes the content of a file.

    Args:
        arrays: Arrays of float32, bfloat16 or uint8 by name.
        metadata: Anything that JSON has, by name, without 'digest'.

    Returns:
        The content; the same bytes for the same arrays and metadata.
    """
    # Written by hand: safetensors puts metadata in another order each time, so the same network
    # would give other bytes.
    texts = {name: as_json(value) for name, value in sorted(metadata.items())}
    texts["digest"] = as_json(_digest(arrays, texts))
    header: dict[str, Any] = {"__metadata__": texts}
    names, end = {dtype: name for name, dtype in _TYPES.items()}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": array.shape,
            "data_offsets": [start, end],
        }
    text = as_json(header).encode()
    text += b" " * (-len(text) % 8)
    data = [array.tobytes() for array in arrays.values()]
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def decode(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the content of a file.

    Args:
        content: The whole file.

    Returns:
        (arrays, metadata), metadata with 'digest'.

    Raises:
        FileError: If it is no file of this form, is cut off, declares more than it holds, or is
            not what its digest says.
    """
    try:
        arrays = {name: _array(entry) for name, entry in safetensors.deserialize(content)}
        texts = _header(content).get("__metadata__", {})
        metadata = {name: json.loads(text) for name, text in texts.items()}
    except (safetensors.SafetensorError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"damaged, or no file of harp_jax.export: {one_line(error)}") from error
    covered = {name: text for name, text in texts.items() if name != "digest"}
    if metadata.get("digest") != _digest(arrays, covered):
        raise FileError("damaged: its content is not what its digest says")
    return arrays, metadata


def format_of(content: bytes) -> str | None:
    """Returns the format that a file says it has; None where it says none."""
    try:
        found = json.loads(_header(content)["__metadata__"]["format"])
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    return found if isinstance(found, str) else None


def _header(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def check_format(metadata: Mapping[str, Any], name: str, version: int) -> None:
    """Raises a FileError unless a file has this format, in this version or an earlier one."""
    found, form = metadata.get("format"), metadata.get("version")
    if found != name:
        raise FileError(f"format={found!r}: allowed is {name!r}")
    if type(form) is not int or not 1 <= form <= version:
        newer = "; a newer harp_jax wrote it" if type(form) is int and form > version else ""
        raise FileError(f"format={name!r}, version={form!r}: allowed are up to {version}{newer}")


def as_json(value: Any) -> str:
    """Returns the shortest JSON of a value."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _array(entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"dtype={entry['dtype']}: allowed are {', '.join(_TYPES)}")
    return np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"])


def _digest(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> str:
    found = hashlib.sha256(as_json(dict(sorted(texts.items()))).encode())
    for name, array in sorted(arrays.items()):
        found.update(as_json([name, array.dtype.name, array.shape]).encode())
        found.update(array.tobytes())
    return found.hexdigest()
