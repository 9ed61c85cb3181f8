"""The normalisation of a network's images: asked for by name or numbers, or in the file."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from harp_jax.export.errors import FileError
from harp_jax.interop.layouts import BUFFERS
from harp_jax.interop.tensors import Tensor
from harp_jax.types import Normalization

# Those of the HARP authors' code.
NORMALIZATIONS: dict[str, Normalization | None] = {
    "none": None,
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "svhn": (
        (0.43090966, 0.4302428, 0.44634357),
        (0.19759192, 0.20029082, 0.19811132),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class Buffers(NamedTuple):
    """Mean and deviation among a checkpoint's arrays.

    Attributes:
        keys: Their keys; empty if there are none.
        arrays: The two; None if there are none.
    """

    keys: tuple[str, ...]
    arrays: tuple[Tensor, Tensor] | None


def check(given: Any, channels: int) -> Normalization | None:
    """Returns the normalisation that was asked for.

    Args:
        given: A name of `NORMALIZATIONS`, or mean and deviation, or None.
        channels: Of the images.

    Raises:
        FileError: If it is none of these, or of another number of channels.
    """
    allowed = f"allowed are {', '.join(NORMALIZATIONS)}, or {channels} means and deviations > 0"
    if given is None:
        return None
    if isinstance(given, str):
        if given not in NORMALIZATIONS:
            raise FileError(f"normalization={given!r}: {allowed}")
        found = NORMALIZATIONS[given]
    else:
        try:
            mean, deviation = (tuple(map(float, numbers)) for numbers in given)
        except (TypeError, ValueError) as error:
            raise FileError(f"normalization={given!r}: {allowed}") from error
        found = mean, deviation
    if found is not None:
        usable = all(map(math.isfinite, found[0] + found[1])) and min(found[1], default=0) > 0
        if [len(numbers) for numbers in found] != [channels, channels] or not usable:
            raise FileError(f"normalization={given!r}: {allowed}")
    return found


def buffers(entries: Mapping[Any, Any]) -> Buffers:
    """Finds mean and deviation among the arrays of a network.

    Raises:
        FileError: If there are several.
    """
    found = []
    for key, array in entries.items():
        if not isinstance(key, str) or not isinstance(array, Tensor):
            continue
        module, dot, name = key.rpartition(".")
        for mean, deviation in BUFFERS:
            other = entries.get(f"{module}{dot}{deviation}")
            if name == mean and isinstance(other, Tensor):
                keys = (key, f"{module}{dot}{deviation}")
                found.append(Buffers(keys, (array, other)))
    if len(found) > 1:
        names = ", ".join(each.keys[0] for each in found)
        raise FileError(f"has several normalisations ({names}); allowed is one")
    return found[0] if found else Buffers((), None)


def choose(given: Any, there: Buffers, channels: int) -> tuple[Normalization | None, str]:
    """Decides between the normalisation that was asked for and the file's.

    Args:
        given: See `check`.
        there: The file's.
        channels: Of the images.

    Returns:
        (normalisation, note): the note is '' if there is nothing to say.

    Raises:
        FileError: If the two differ, or the file's cannot be used.
    """
    asked = check(given, channels)
    if there.arrays is None:
        if given is None:
            return None, "no normalisation was asked for and none is in the file: images in [0, 1]"
        return asked, ""
    # The decimal numbers that were rounded to float32, as the configuration will give them.
    own = [
        tuple(float(str(np.float32(n))) for n in array.array().reshape(-1))
        for array in there.arrays
    ]
    try:
        found = check(own, channels)
    except FileError as error:
        raise FileError(f"{there.keys[0]}: {error}") from error
    differs = asked is None or found is None or not np.allclose(asked, found, rtol=0, atol=1e-6)
    if given is not None and differs:
        raise FileError(
            f"normalization={given!r}: the file has its own, {found}; allowed is to leave it out"
        )
    return found, f"normalisation {found} is that of {there.keys[0]} and {there.keys[1]}"
