"""Checksums in JSON objects: a byte that has changed is found when the object is read.

A CRC-32 finds damage, not intent. An object without one, of an older version or written by hand, is
not checked.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

from harp_jax.workdir import files

CHECKSUM = "checksum"


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object with its checksum as the last entry.

    Args:
        content: What `files.json_text` takes, without a checksum.
    """
    return {**content, CHECKSUM: _of(content)}


def bare(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an object without its checksum."""
    return {name: value for name, value in content.items() if name != CHECKSUM}


def problem(content: Mapping[str, Any]) -> str | None:
    """Compares an object with its checksum.

    Args:
        content: What was read.

    Returns:
        What is wrong; None if it is what was saved, or has no checksum.
    """
    if content.get(CHECKSUM) in (None, _of(bare(content))):
        return None
    return "is not what was saved, by its checksum"


def _of(content: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(files.json_text(content)), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
