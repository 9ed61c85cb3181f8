"""The names of a workdir's files, and writing them atomically."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

STAGES = ("pretrain", "prune", "finetune")  # in their order; each has a folder
CONFIG = "config.json"
STRATEGY = "strategy.json"
RESULTS = "results.json"
PREVIOUS_RESULTS = "results.previous.json"
EXAMPLES = "examples.npz"
NETWORK = "network.safetensors"  # the last pruned network
SIZES = "network.json"  # its size and speed
ROBUSTNESS = "robustness"
REPORT = "report"
PAGE = "index.html"  # in REPORT
LOCK = ".lock"
# In a stage's folder.
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
RESULT = "result"
CHECKPOINTS = "checkpoints"
LAST, BEST = "last", "best"  # in CHECKPOINTS


def is_first_process() -> bool:
    """Returns whether this is the first process, which alone writes files."""
    return jax.process_index() == 0


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replaces a file as a whole, in the first process only.

    The content is written to a temporary file, which is then renamed. A kill leaves either the old
    or the new content. This also works in object stores, which cannot append.

    Args:
        path: Path of the file; its folder is created if needed.
        content: Text or bytes.

    Raises:
        OSError: If the file cannot be written; nothing is left beside a folder of that name.
    """
    if not is_first_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; allowed are files")
    unfinished = path.parent / f"{path.name}.tmp"
    if isinstance(content, str):
        content = content.encode()
    unfinished.write_bytes(content)
    unfinished.replace(path)


def json_text(content: Any, indent: int | None = None) -> str:
    """Returns strict JSON, which has no NaN and no infinity: null stands for these.

    Args:
        content: Objects as mappings, lists, texts, numbers, flags and None.
        indent: Spaces at the start of a line, by level; None puts everything on one line.
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def write_json(path: epath.Path, content: Any) -> None:
    """Replaces a JSON file; see `write_atomically` and `json_text`."""
    write_atomically(path, json_text(content, indent=2) + "\n")
