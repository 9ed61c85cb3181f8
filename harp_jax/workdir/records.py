"""Reading the files of a finished workdir, for its report."""

import io
import json
from typing import Any

import numpy as np
from etils import epath

STAGES = {"pretrain": "dense (pretrain)", "prune": "pruned", "finetune": "finetuned"}


class ReportError(ValueError):
    """Raised if the workdir lacks files of the report or they cannot be read."""


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON file; raises a `ReportError` if that fails."""
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not valid JSON ({error})") from error


def read_results(workdir: epath.Path) -> dict[str, Any]:
    """Reads results.json, rows in the order of stages; raises a `ReportError` without rows."""
    path = workdir / "results.json"
    # The stage of a one-shot method has a result but no epochs.
    signs = ("metrics.jsonl", "result")
    pending = [s for s in STAGES if not any((workdir / s / sign).exists() for sign in signs)]
    advice = f"run stage {pending[0]!r}" if pending else "run the evaluation of stage 'finetune'"
    if not path.exists():
        raise ReportError(f"{path}: missing, so there is nothing to report; {advice} first")
    results = read_json(path)
    if not results.get("rows"):
        raise ReportError(f"{path}: has no rows, so there is nothing to report; {advice} first")
    places = {stage: place for place, stage in enumerate(STAGES)}
    results["rows"].sort(key=lambda row: places.get(row["stage"], len(places)))
    return results


def read_metrics(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads metrics.jsonl by epoch; of an epoch logged twice (in a resumed run), the later row."""
    path = epath.Path(path)
    if not path.exists():
        return []
    lines = {}
    for number, text in enumerate(path.read_bytes().decode().splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ReportError(f"{path}: line {number} is not valid JSON ({error})") from error
        lines[line["epoch"]] = line
    return [lines[epoch] for epoch in sorted(lines)]


def read_examples(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of examples.npz; a missing file has none."""
    if not path.exists():
        return {}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
