"""Which code ran: versions and git revision, now and before."""

import importlib.metadata
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
_CODE = ("versions", "revision")


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and those that its numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in ("harp_jax", *PACKAGES)}
    return {"python": platform.python_version(), **found}


def revision() -> str | None:
    """Returns the git revision of the code; None outside a git checkout."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def continued(
    earlier: Mapping[str, Any] | None, code: Mapping[str, Any], begun: Sequence[str], now: str
) -> dict[str, Any]:
    """Makes the entries of config.json that say which code used the workdir, and when.

    Args:
        earlier: Content of config.json so far; None if there is none.
        code: 'versions' and 'revision' of this code.
        begun: The stages that have begun.
        now: The time, in ISO form.

    Returns:
        'since' (when this code first used the workdir) and 'history', one entry for each earlier
        code, oldest first: its 'versions', 'revision', 'since', and the 'stages' that had begun
        when the next one took over.
    """
    if earlier is None:
        return {"since": now, "history": []}
    since = earlier.get("since") or earlier.get("created") or now
    history = list(earlier.get("history") or [])
    before = {name: earlier.get(name) for name in _CODE}
    if before == {name: code[name] for name in _CODE}:
        return {"since": since, "history": history}
    return {"since": now, "history": [*history, {**before, "since": since, "stages": list(begun)}]}
