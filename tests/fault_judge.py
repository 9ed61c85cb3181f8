"""What a trial's workdir has to equal: all that a run gives, but for times and places."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import runs
from fault_trials import LOST, ROUNDED, SAID, SAME, WRONG, Trial, saved

from harp_jax.export import container

ARRAYS_APART = 1e-3  # at most, of weights, scores and logits of rates on other devices
SHARES_APART = 0.1  # at most, of losses and accuracies
# Entries of records that depend on time, place and code.
OF_PLACE = {
    *("checksum", "compilation_cache", "config", "created", "data_wait", "device", "devices"),
    *("history", "images_per_second", "milliseconds", "revision", "seconds", "since", "stages"),
    "versions",
}


def _plain(value: Any) -> Any:
    """Returns JSON without what depends on time, place and code."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items() if name not in OF_PLACE}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _json(path: pathlib.Path) -> Any:
    return _plain(json.loads(path.read_text()))


def _rows(path: pathlib.Path) -> Any:
    return runs.metrics(path.parents[1], path.parent.name)


def _arrays(path: pathlib.Path) -> Any:
    with np.load(path) as found:
        return {name: found[name].tolist() for name in found.files}


def _network(path: pathlib.Path) -> Any:
    arrays, metadata = container.decode(path.read_bytes())
    del metadata["digest"]  # it covers the revision
    return {name: each.tolist() for name, each in arrays.items()}, _plain(metadata)


RECORDS: dict[str, Callable[[pathlib.Path], Any]] = {
    **{f"{stage}/metrics.jsonl": _rows for stage in runs.STAGES},
    "config.json": _json,
    "strategy.json": _json,
    "results.json": _json,
    "examples.npz": _arrays,
    "network.safetensors": _network,
    "network.json": _json,
    "report/index.html": pathlib.Path.is_file,
}


def other_records(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Returns the files of two workdirs that say different things."""
    return [name for name, read in RECORDS.items() if _read(one, name) != _read(other, name)]


def _read(workdir: pathlib.Path, name: str) -> Any:
    try:
        return RECORDS[name](workdir / name)
    except (OSError, ValueError) as error:  # no record equals it
        return f"{type(error).__name__} in {workdir}"


def judge(trial: Trial, rounds: bool) -> tuple[str, float, str]:
    """Compares a trial that is done with the undisturbed run.

    Args:
        trial: The trial.
        rounds: Whether it ran on other devices, so that sums may have another order.

    Returns:
        The outcome, the largest difference of an array, and what led to it.
    """
    found = saved(trial.workdir)
    again = [key for key, seconds in trial.saved.items() if found.get(key) != seconds]
    if again:
        return LOST, 0.0, f"made again although it was saved: {again}"
    text = trial.logs()
    for key, seconds in trial.unsafe.items():
        named = (str(trial.workdir / key[0]), "results.json" if "results.json" in key else None)
        said = any(name is not None and name in text for name in named)
        if found.get(key) != seconds and not said:
            return LOST, 0.0, f"made again without a word: {key}"
    one, other = trial.whole.workdir, trial.workdir
    try:
        apart = runs.differences(one, other)
    except ValueError as error:
        return WRONG, 0.0, f"the finished run cannot be read: {error}"
    largest, records = max(apart.values()), other_records(one, other)
    well = SAID if trial.acted else SAME
    why = "; ".join(trial.acted)
    if largest == 0.0 and not records:
        return well, 0.0, why
    said = [name for name in records if _is_said(trial, name)]
    if largest == 0.0 and said == records:
        return SAID, 0.0, f"the log says what is gone of {', '.join(records)}"
    if rounds and largest <= ARRAYS_APART and _close(one, other):
        return well if trial.acted else ROUNDED, largest, why
    return WRONG, largest, f"other arrays by {largest:.1e}; other {', '.join(records) or 'none'}"


def _is_said(trial: Trial, name: str) -> bool:
    """Returns whether a file was damaged, and a log names it."""
    path = trial.workdir / name
    return path in trial.damaged and str(path) in trial.logs()


def _close(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Returns whether losses and accuracies are nearly the same."""
    pairs = [(_shares(_read(w, name)) for w in (one, other)) for name in RECORDS if "." in name]
    try:
        return all(abs(a - b) <= SHARES_APART for pair in pairs for a, b in zip(*pair, strict=True))
    except ValueError:  # something is missing in one of them
        return False


def _shares(value: Any, name: str = "") -> list[float]:
    """Returns the losses and accuracies inside a record, in its order."""
    if isinstance(value, Mapping):
        return [share for key, each in value.items() for share in _shares(each, key)]
    if isinstance(value, list) and name != "layers":
        return [share for each in value for share in _shares(each, name)]
    known = ("loss", "accuracy", "natural", "robust", "fgsm", "autoattack")
    return [value] if name in known and isinstance(value, float) else []
