"""Reading JSON that may be damaged or of strangers, within limits."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

LARGEST = 2**26  # bytes of a file
DEEPEST = 32  # objects and lists inside each other


def read(path: epath.Path, largest: int = LARGEST) -> bytes:
    """Reads a file that is not too large.

    Args:
        path: Path of the file.
        largest: Most bytes that are allowed.

    Returns:
        Its bytes.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is larger.
    """
    size = path.stat().length
    if size > largest:
        raise ValueError(f"has {size:,} bytes; allowed are at most {largest:,}")
    return path.read_bytes()


def parse(content: str | bytes) -> Any:
    """Parses JSON.

    Args:
        content: One value.

    Returns:
        The value. Its numbers are finite: NaN and infinities, which JSON does not have, become
        None. Python writes them all the same.

    Raises:
        ValueError: If it is no JSON, or is nested deeper than `DEEPEST`.
    """
    try:
        found = json.loads(content, parse_constant=lambda _: None)
    except RecursionError:
        found = None
        deep = True
    else:
        deep = _is_deep(found)
    if deep:
        raise ValueError(f"is nested too deeply; allowed are at most {DEEPEST} levels")
    return found


def _is_deep(value: Any) -> bool:
    """Returns whether a value is nested deeper than allowed."""
    level = [value]
    for _ in range(DEEPEST + 1):
        held = (each for each in level if isinstance(each, Mapping | list))
        level = [
            member
            for each in held
            for member in (each.values() if isinstance(each, Mapping) else each)
        ]
        if not level:
            return False
    return True
