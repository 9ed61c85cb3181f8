"""The normalisation of a network's images: asked for by name or numbers, or in the file."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from harp_jax.export.errors import FileError
from harp_jax.interop.layouts import BUFFERS
from harp_jax.interop.report import printable
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
        others: Keys of those that belong to other networks of the file.
    """

    keys: tuple[str, ...]
    arrays: tuple[Tensor, Tensor] | None
    others: tuple[str, ...] = ()


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


def buffers(entries: Mapping[Any, Any], prefix: str, others: Sequence[str]) -> Buffers:
    """Finds mean and deviation among the arrays of a network.

    Args:
        entries: The arrays, by key.
        prefix: Of the network's keys.
        others: Prefixes of other networks among the arrays.

    Returns:
        The normalisation. Of several it is the one in the network or beside it, unless another
        one belongs to no network at all.

    Raises:
        FileError: If there are several.
    """
    every = _all_buffers(entries)
    own = [each for each in every if _belongs(each.keys[0], prefix, others)]
    found = own if len(own) == 1 else every
    if len(found) > 1:
        names = ", ".join(printable(each.keys[0]) for each in own or every)
        raise FileError(f"has several normalisations ({names}); allowed is one")
    left = tuple(key for each in every if each not in found for key in each.keys)
    return found[0]._replace(others=left) if found else Buffers((), None)


def _all_buffers(entries: Mapping[Any, Any]) -> list[Buffers]:
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
    return found


def _belongs(key: str, prefix: str, others: Sequence[str]) -> bool:
    """Returns whether an array is in a network or beside it, and not in or beside another one."""
    inside = [each for each in (prefix, *others) if key.startswith(each)]
    if inside:
        return max(inside, key=len) == prefix
    module = key.rpartition(".")[0]
    places = (module, module.rpartition(".")[0])
    beside = [each.removesuffix(".").rpartition(".")[0] in places for each in (prefix, *others)]
    return beside[0] or not any(beside)


def choose(
    given: Any, there: Buffers, channels: int, own: Mapping[str, Any] | None = None
) -> tuple[Normalization | None, str]:
    """Decides between the normalisation that was asked for and the file's.

    Args:
        given: See `check`.
        there: The file's.
        channels: Of the images.
        own: What `harp_jax.export` said of the network, if it wrote the file.

    Returns:
        (normalisation, note): the note is '' if there is nothing to say.

    Raises:
        FileError: If the two differ, or the file's cannot be used.
    """
    asked = check(given, channels)
    if there.arrays is None and own is not None:
        said = check(own.get("normalization"), channels)
        _check_same(given, asked, said)
        return said, f"normalisation {said or 'none'} is that of the file's metadata"
    if there.arrays is None:
        if given is None:
            return None, "no normalisation was asked for and none is in the file: images in [0, 1]"
        return asked, ""
    name, deviation = map(printable, there.keys)
    if any(math.prod(array.shape) != channels for array in there.arrays):
        shapes = " and ".join(str(array.shape) for array in there.arrays)
        raise FileError(f"{name}, {deviation}: have the shapes {shapes}; allowed are {channels}")
    # The decimal numbers that were rounded to float32, as the configuration will give them.
    numbers = [
        tuple(float(str(np.float32(n))) for n in array.array().reshape(-1))
        for array in there.arrays
    ]
    try:
        found = check(numbers, channels)
    except FileError as error:
        raise FileError(f"{name}: {error}") from error
    _check_same(given, asked, found)
    return found, f"normalisation {found} is that of {name} and {deviation}"


def _check_same(given: Any, asked: Normalization | None, found: Normalization | None) -> None:
    if asked is None or found is None:
        differs = asked != found
    else:
        differs = not np.allclose(asked, found, rtol=0, atol=1e-6)
    if given is not None and differs:
        raise FileError(
            f"normalization={given!r}: the file has its own, {found or 'none'}; allowed is to leave"
            " it out"
        )
