"""What a finished workdir holds, read for its report."""

import io
import json
from typing import Any

import numpy as np
from etils import epath

STAGES = {"pretrain": "dense (pretrain)", "prune": "pruned", "finetune": "finetuned"}


class ReportError(ValueError):
    """The workdir does not hold what a report needs."""


def read_json(path: epath.Path) -> dict[str, Any]:
    """The content of a JSON file, or a `ReportError`."""
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not valid JSON ({error})") from error


def read_results(workdir: epath.Path) -> dict[str, Any]:
    """results.json with its rows in the stages' order; a `ReportError` if there are none."""
    path = workdir / "results.json"
    # A stage of one shot has a result and no epochs.
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
    """The log's lines by epoch; of an epoch logged twice (a resumed run) the later line counts."""
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
    """The arrays of an archive, none if it is not there."""
    if not path.exists():
        return {}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
