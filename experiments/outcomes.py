"""The outcome of AutoAttack on every test image as text, in a table beside that of the accuracies.

A character stands for an image: the place of the part of AutoAttack that broke it, from 0, or `.`
where none did. With this table intervals need no workdirs, which are large and may be gone.
"""

import string

import numpy as np
from jaxtyping import Int

from harp_jax.evaluation import ROBUST

COLUMN = "broken_by"
_PLACES = string.digits + string.ascii_lowercase
_OF_ROBUST = "."


def to_text(broken_by: Int[np.ndarray, " images"]) -> str:
    """Writes outcomes as text.

    Args:
        broken_by: For each image the place of the part that broke it, in 0 to 35, or `ROBUST`.
    """
    return "".join(_OF_ROBUST if part == ROBUST else _PLACES[part] for part in broken_by)


def from_text(text: str) -> Int[np.ndarray, " images"]:
    """Reads outcomes that `to_text` wrote.

    Raises:
        ValueError: If there are none, or of a character that stands for nothing.
    """
    wrong = sorted(set(text) - {*_PLACES, _OF_ROBUST})
    if wrong or not text:
        said = f"{wrong[0]!r}" if wrong else "nothing"
        raise ValueError(f"{COLUMN}: {said}: allowed are 0 to 9, a to z and {_OF_ROBUST}")
    places = [ROBUST if part == _OF_ROBUST else _PLACES.index(part) for part in text]
    return np.array(places, np.int8)
