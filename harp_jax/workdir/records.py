"""Reading what a run has recorded: its table, its epochs and its images."""

import io
import logging
import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from harp_jax.workdir import checksums, files, forms, parsing

_LOGGER = logging.getLogger(__name__)
_NAMES = ("dense (pretrain)", "pruned", "finetuned")
STAGES: dict[str, str] = dict(zip(files.STAGES, _NAMES, strict=True))  # as the report calls them
Row = dict[str, Any]  # of results.json
_WITHOUT = "remove that line: networks do not depend on it"
_ATTACKED = ("adversarial", "natural_prediction", "adversarial_prediction")


class ReportError(ValueError):
    """Raised if the workdir lacks files of the report or they cannot be read."""


def read_json(path: epath.Path, form: forms.Form = forms.OBJECT) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
        path: Path of the file.
        form: Its form, see `forms`.

    Returns:
        The object, without its checksum.

    Raises:
        ReportError: If it cannot be read, has another form, or is not what its checksum says; names
            the file.
    """
    try:
        found = parsing.parse(parsing.read(path))
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: not valid JSON ({error})") from error
    wrong = forms.problem(found, form) or checksums.problem(found)
    if wrong is not None:
        raise ReportError(f"{path}: {wrong}")
    return checksums.bare(found)


def read_table(workdir: epath.Path) -> dict[str, Any] | None:
    """Reads results.json; returns None if there is none.

    Raises:
        ReportError: If it cannot be read, has another form, or is not what its checksum says.
    """
    path = workdir / files.RESULTS
    try:
        return read_json(path, forms.RESULTS) if path.exists() else None
    except ReportError as error:
        advice = "remove it, and the command of its run measures its networks again"
        raise ReportError(f"{error}; {advice}") from error


def read_results(workdir: epath.Path) -> dict[str, Any]:
    """Reads results.json, rows in the order of stages; raises a `ReportError` without rows."""
    # The stage of a one-shot method has a result but no epochs.
    signs = (files.METRICS, files.RESULT)
    pending = [s for s in STAGES if not any((workdir / s / sign).exists() for sign in signs)]
    advice = f"run stage {pending[0]!r}" if pending else "run the evaluation of stage 'finetune'"
    path, results = workdir / files.RESULTS, read_table(workdir)
    if results is None:
        raise ReportError(f"{path}: missing, so there is nothing to report; {advice} first")
    if not results["rows"]:
        raise ReportError(f"{path}: has no rows, so there is nothing to report; {advice} first")
    places = {stage: place for place, stage in enumerate(STAGES)}
    results["rows"].sort(key=lambda row: places.get(row["stage"], len(places)))
    return results


def drop_row(workdir: epath.Path, stage: str) -> None:
    """Removes a stage's row from results.json; the network that it is of will be replaced."""
    results = read_table(workdir)
    if results is not None:
        rows = [row for row in results["rows"] if row["stage"] != stage]
        if len(rows) < len(results["rows"]):
            left = {**results, "complete": False, "rows": rows}
            files.write_json(workdir / files.RESULTS, checksums.signed(left))


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads metrics.jsonl by epoch; of an epoch logged twice (in a resumed run), the later row.

    A last line that ends in the middle, as a full disk or a power cut may leave it, is dropped, and
    the log says so.

    Raises:
        ReportError: If it cannot be read, or a line has another form or is not what its checksum
            says; names the file and the line.
    """
    path = epath.Path(path)
    if not path.exists():
        return []
    try:
        *whole, last = parsing.read(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read ({error})") from error
    lines = {}
    for number, text in enumerate([*whole, last], start=1):
        if not text.strip():
            continue
        try:
            line = parsing.parse(text)
        except ValueError as error:
            begun = text.rstrip(b"\0")
            if text is last and (not begun or begun.startswith(b"{")):
                _LOGGER.warning("%s: line %d ends in the middle; it is dropped", path, number)
                continue
            wrong = f"is not valid JSON ({error})"
            raise ReportError(f"{path}: line {number} {wrong}; {_WITHOUT}") from error
        wrong = forms.problem(line, forms.METRICS) or checksums.problem(line)
        if wrong is not None:
            raise ReportError(f"{path}: line {number}: {wrong}; {_WITHOUT}")
        lines[line["epoch"]] = checksums.bare(line)
    return [lines[epoch] for epoch in sorted(lines)]


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file.

    Raises:
        ReportError: If it cannot be read; names the file.
    """
    broken = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        content = io.BytesIO(path.read_bytes())
        if not zipfile.is_zipfile(content):
            raise ValueError("no zip archive")
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (*broken, NotImplementedError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ReportError(f"{path}: cannot be read as arrays ({text})") from error


def read_examples(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of examples.npz; a missing file has none.

    Raises:
        ReportError: If it cannot be read or lacks arrays; names the file.
    """
    if not path.exists():
        return {}
    arrays = read_arrays(path)
    stages = {name.partition("/")[0] for name in arrays if "/" in name}
    images = [f"{stage}/{name}" for stage in sorted(stages) for name in _ATTACKED]
    missing = {"images", "labels", "attack", "epsilon", *images} - arrays.keys()
    if missing:
        raise ReportError(f"{path}: has no {', '.join(sorted(missing))}")
    count = len(arrays["images"]) if arrays["images"].ndim == 4 else 0
    of_images = [arrays[name] for name in ("labels", *images)]
    if count == 0 or any(array.shape[:1] != (count,) for array in of_images):
        raise ReportError(f"{path}: its images and labels do not fit each other")
    if arrays["attack"].size != 1 or arrays["epsilon"].size != 1:
        raise ReportError(f"{path}: has more than one attack or epsilon")
    return arrays
