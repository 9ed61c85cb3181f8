"""The files of a run's folder by name, and how one is written."""

import json
from typing import Any

import jax
from etils import epath

CONFIG = "config.json"
STRATEGY = "strategy.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
PREVIOUS_RESULTS = "results.previous.json"
EXAMPLES = "examples.npz"
ROBUSTNESS = "robustness"
REPORT = "report"
LOCK = ".lock"


def is_first_process() -> bool:
    """Whether this process is the one that writes what all of them know."""
    return jax.process_index() == 0


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replaces a file as a whole; only the first process does.

    Written beside it and renamed: a kill leaves the old or the new content, and object stores,
    which cannot append, take it too.

    Args:
        path: The file; its folder is made if it is not there.
        content: Text or bytes.

    Raises:
        OSError: If it cannot be written.
    """
    if not is_first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    if isinstance(content, str):
        content = content.encode()
    unfinished.write_bytes(content)
    unfinished.replace(path)


def write_json(path: epath.Path, content: Any) -> None:
    """Replaces a JSON file, see `write_atomically`."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")
