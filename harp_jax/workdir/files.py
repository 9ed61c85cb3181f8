"""The names of a workdir's files, and writing them atomically."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
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


class WriteError(OSError):
    """Raised if a file cannot be written; the message is one line with its path and the cause."""

    def __init__(self, path: epath.PathLike, cause: str):
        self.path, self.cause = os.fspath(path), cause
        super().__init__(f"{self.path}: cannot be written ({cause})")


def is_remote(path: epath.PathLike) -> bool:
    """Returns whether a path is a URL, such as gs://..., and not of this machine's file system."""
    return "://" in os.fspath(path)


@contextlib.contextmanager
def writing(path: epath.PathLike) -> Iterator[None]:
    """Turns the errors of a block that writes a file or folder into a `WriteError` with its path.

    Args:
        path: What the block writes.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, ValueError) as error:  # TensorStore, below Orbax, raises ValueError
        raise WriteError(path, _cause(error)) from error


def _cause(error: OSError | ValueError) -> str:
    """Returns the system's words for an error, else the beginning of its text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    number = re.search(r"os_error_code='(\d+)'", text)
    return os.strerror(int(number[1])) if number else text[:200] or type(error).__name__


def write_atomically(path: epath.Path, content: str | bytes, make_folder: bool = True) -> None:
    """Replaces a file as a whole, in the first process only.

    The content is written to a temporary file and to the disk itself, then renamed. A kill, a full
    disk or a power cut leaves either the old or the new content. An object in a bucket is replaced
    in one piece without that.

    Args:
        path: Path of the file.
        content: Text or bytes.
        make_folder: Whether its folder is created if needed. Otherwise one that is gone, as that of
            a disk that is not mounted any more, is an error.

    Raises:
        WriteError: If the file cannot be written; the old content stays, and nothing new is left.
    """
    if not is_first_process():
        return
    if isinstance(content, str):
        content = content.encode()
    with writing(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder; allowed are files")
        if is_remote(path):
            path.write_bytes(content)
        else:
            _replace(path, content)


def _replace(path: epath.Path, content: bytes) -> None:
    unfinished = path.parent / f"{path.name}.tmp"
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


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


def append(path: epath.Path, before: bytes, new: bytes) -> None:
    """Adds to the end of a file; a kill may leave a part of the addition.

    Args:
        path: Path of the file; its folder is created if needed.
        before: All that was added so far. Buckets cannot append, so it is written again there.
        new: What to add.

    Raises:
        WriteError: If it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_remote(path):
            path.write_bytes(before + new)
        else:
            with path.open("ab") as file:
                file.write(new)


def write_json(path: epath.Path, content: Any) -> None:
    """Replaces a JSON file in a folder that exists; see `write_atomically` and `json_text`."""
    write_atomically(path, json_text(content, indent=2) + "\n", make_folder=False)
