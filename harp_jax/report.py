"""A finished workdir as one page: tables, curves, layer-wise rates and attacked images.

The page needs nothing but itself: figures are embedded, there are no scripts. What the workdir does
not hold is left out of the page. Epochs count from 0, as in the logs.
"""

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from harp_jax import plots

STAGES = {"pretrain": "dense (pretrain)", "prune": "pruned", "finetune": "finetuned"}
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1"}
MAXIMUM_EXAMPLES = 8
MEASURED_FINELY = 10_000  # images from which on a hundredth of a percent point means something

Record = Mapping[str, Any]
Log = Sequence[Record]  # one record an epoch


class ReportError(ValueError):
    """The workdir does not hold what a report needs."""


def write(workdir: epath.PathLike) -> epath.Path:
    """Writes `report/index.html` of a finished run.

    Args:
        workdir: Folder with `results.json` and, where there are any, `config.json`,
            `<stage>/metrics.jsonl` and `examples.npz`.

    Returns:
        The path of the page. Its content depends on the files read alone.

    Raises:
        ReportError: If `results.json` is missing or has no rows, or a file cannot be read.
    """
    workdir = epath.Path(workdir)
    results = _read_results(workdir)
    rows = results["rows"]
    run = _read_json(workdir / "config.json") if (workdir / "config.json").exists() else results
    logs = {stage: _read_metrics(workdir / stage / "metrics.jsonl") for stage in STAGES}
    logs = {stage: lines for stage, lines in logs.items() if lines}
    examples = _read_examples(workdir / "examples.npz")
    html = _template().render(
        **_headline(run, results),
        rows=rows,
        columns=list(dict.fromkeys(name for row in rows for name in row["robust"])),
        summary=_summary(rows),
        precision=_precision(rows),
        flops=_flops(rows),
        attacks=[(name, _attack(each)) for name, each in results.get("attacks", {}).items()],
        dataset=results.get("dataset", {}),
        chosen_on=results.get("config", {}).get("data", {}).get("select_on", "validation"),
        complete=results.get("complete", True),
        notes=results.get("notes", []),
        figures={name: _embedded(figure) for name, figure in _figures(rows, logs, examples)},
        shown_attack=_shown_attack(examples),
        training=_training(rows, logs),
        environment=_environment(run, results),
        settings=list(_flat(run.get("config", {}))),
    )
    page = workdir / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_bytes(html.encode())
    return page


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harp_jax"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"stage": _stage, "count": "{:,}".format, "sparsity": _sparsity}
    environment.globals["score"] = _score
    return environment.get_template("report.html")


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ReportError(f"{path}: not valid JSON ({error})") from error


def _read_results(workdir: epath.Path) -> dict[str, Any]:
    path = workdir / "results.json"
    pending = [stage for stage in STAGES if not (workdir / stage / "metrics.jsonl").exists()]
    advice = f"run stage {pending[0]!r}" if pending else "run the evaluation of stage 'finetune'"
    if not path.exists():
        raise ReportError(f"{path}: missing, so there is nothing to report; {advice} first")
    results = _read_json(path)
    if not results.get("rows"):
        raise ReportError(f"{path}: has no rows, so there is nothing to report; {advice} first")
    places = {stage: place for place, stage in enumerate(STAGES)}
    results["rows"].sort(key=lambda row: places.get(row["stage"], len(places)))
    return results


def _read_metrics(path: epath.Path) -> list[dict[str, Any]]:
    """The log's lines by epoch; of an epoch logged twice (a resumed run) the later line counts."""
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


def _read_examples(path: epath.Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _headline(run: Record, results: Record) -> dict[str, Any]:
    """Title and facts at the head of the page."""
    config, rows = run.get("config", {}), results["rows"]
    model = str(config.get("model", ""))
    data = results.get("dataset", {}).get("name") or config.get("data", {}).get("name", "")
    pruned = [row for row in rows if row["sparsity"] > 0]
    prune = config.get("prune", {}) if pruned else {}
    target, by_channel = prune.get("target"), prune.get("granularity") == "channel"
    facts = [
        ("dataset", data),
        ("model", model),
        ("target sparsity", _sparsity(1 - target) if target and not by_channel else ""),
        ("target channels", f"{100 * target:g} %" if target and by_channel else ""),
        ("seed", str(results.get("seed", ""))),
        ("date", str(run.get("created") or "")[:10]),
    ]
    return {
        "title": " on ".join(name for name in (model, data) if name) or "A run",
        "subtitle": f"pruned to {_sparsity(pruned[-1]['sparsity'])} sparsity" if pruned else "",
        "facts": [(label, fact) for label, fact in facts if fact],
    }


def _summary(rows: Sequence[Record]) -> dict[str, Any] | None:
    """The last network and the dense one, with the attack that hurts the last one most."""
    dense, last = rows[0], rows[-1]
    if last is dense or dense["stage"] != "pretrain":
        return None
    shared = [name for name in last["robust"] if name in dense["robust"]]
    worst = min(shared, key=lambda name: last["robust"][name]) if shared else None
    return {"dense": dense, "last": last, "attack": worst}


def _flops(rows: Sequence[Record]) -> list[float]:
    """Kept share of the FLOPs of every row, or nothing if a row has no count of them."""
    if any("flops" not in row for row in rows):
        return []
    return [row["flops"] / row["total_flops"] for row in rows]


def _precision(rows: Sequence[Record]) -> dict[str, str]:
    """How many test images there were, and the largest standard error that follows."""
    counts = sorted({row["images"] for row in rows})
    errors = [
        math.sqrt(score * (1 - score) / row["images"])
        for row in rows
        for score in (row["natural"], *row["robust"].values())
    ]
    images = " or ".join(f"{count:,}" for count in counts)
    return {"images": images, "error": f"{100 * max(errors):.2g}"}


def _attack(settings: Record) -> str:
    """An attack's settings in words: what is known in a fixed order, then the rest by name."""
    rest = dict(settings)
    words = [str(rest.pop("type"))] if "type" in rest else []
    if "norm" in rest:
        norm = str(rest.pop("norm"))
        words.append(NORMS.get(norm.lower(), norm))
    if "epsilon" in rest:
        words.append(f"ε = {_pixels(rest.pop('epsilon'))}")
    if rest.get("step_size") is not None:
        words.append(f"step size {_pixels(rest.pop('step_size'))}")
    for field in ("steps", "restarts"):
        if isinstance(count := rest.get(field), int):
            words.append(f"{count:,} {field if rest.pop(field) != 1 else field[:-1]}")
    for field, value in rest.items():
        if value is not None:
            shown = value if isinstance(value, str) else json.dumps(value)
            words.append(f"{field.replace('_', ' ')} {shown}")
    return ", ".join(words)


def _pixels(value: float) -> str:
    """A length on the [0, 1] scale, as a fraction of 255 where that is the shorter way."""
    levels = value * 255
    if abs(value * 1000 - round(value * 1000)) > 1e-6 and abs(levels - round(levels)) < 1e-3:
        return f"{round(levels)}/255"
    return f"{value:.4g}"


def _embedded(figure: Figure) -> str:
    return f"data:image/png;base64,{base64.b64encode(plots.to_png_bytes(figure)).decode()}"


def _figures(
    rows: Sequence[Record], logs: Mapping[str, Log], examples: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Figure]]:
    """All figures that there are data for, by the name of their caption in the template."""
    layers = [layer for layer in rows[-1].get("layers", []) if layer["parameters"]]
    if rows[-1]["sparsity"] > 0 and layers:
        counts = [
            plots.LayerCount(each["layer"], each["kept"], each["parameters"]) for each in layers
        ]
        yield "layers", plots.kept_shares(counts)
    yield from _pruning_figures(logs.get("prune", []))
    chosen = {row["stage"]: row.get("checkpoint_epoch") for row in rows}
    curves = [_curves(stage, lines, chosen.get(stage)) for stage, lines in logs.items()]
    if curves:
        yield "accuracy", plots.accuracies(curves)
        yield "loss", plots.training_loss(curves)
    yield from _example_figure(examples, [row["stage"] for row in rows])


def _pruning_figures(lines: Log) -> Iterator[tuple[str, Figure]]:
    epochs = np.array([line["epoch"] for line in lines], dtype=np.int64)
    target = None
    if lines and lines[-1].get("compression"):
        target = lines[-1]["compression"]["target"]
        curves = plots.CompressionCurves(
            epochs=epochs,
            loss=_series(lines, "compression", "loss"),
            gamma=_series(lines, "compression", "gamma"),
            rate=_series(lines, "compression", "rate"),
            target=target,
            frozen=_first(lines, "frozen"),
            reached=_first(lines, "reached"),
        )
        if not np.isnan(curves.gamma).all():  # with fixed rates there is nothing to see
            yield "compression", plots.compression(curves)
        if lines[-1]["compression"].get("unit") == "FLOPs":
            target = None  # a share of FLOPs, not a rate of channels
    if lines and lines[-1].get("rates"):
        rates = {name: _series(lines, "rates", name) for name in lines[-1]["rates"]}
        yield "rates", plots.layer_rates(epochs, rates, target)


def _first(lines: Log, flag: str) -> int | None:
    return next((line["epoch"] for line in lines if line["compression"].get(flag)), None)


def _series(lines: Log, group: str, field: str) -> np.ndarray:
    """One logged number by epoch, nan where it was not measured."""
    values = [(line.get(group) or {}).get(field) for line in lines]
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _curves(stage: str, lines: Log, chosen: int | None) -> plots.StageCurves:
    if chosen is None:
        chosen = max((line["epoch"] for line in lines if line.get("best")), default=None)
    return plots.StageCurves(
        name=STAGES[stage],
        epochs=np.array([line["epoch"] for line in lines], dtype=np.int64),
        loss=_series(lines, "train", "loss"),
        natural=_series(lines, "validation", "natural"),
        robust=_series(lines, "validation", "robust"),
        chosen=chosen,
    )


def _example_figure(
    examples: Mapping[str, np.ndarray], stages: Sequence[str]
) -> Iterator[tuple[str, Figure]]:
    first = {name: array[:MAXIMUM_EXAMPLES] for name, array in examples.items() if array.ndim}
    attacked = [
        plots.StageExamples(
            name=_stage(stage).split()[0],
            adversarial=first[f"{stage}/adversarial"],
            natural_prediction=first[f"{stage}/natural_prediction"],
            adversarial_prediction=first[f"{stage}/adversarial_prediction"],
        )
        for stage in stages
        if f"{stage}/adversarial" in first
    ]
    if attacked:
        images = first["images"]
        largest = max(float(np.abs(each.adversarial - images).max()) for each in attacked)
        yield "examples", plots.examples(images, first["labels"], attacked, largest or 1.0)


def _shown_attack(examples: Mapping[str, np.ndarray]) -> str:
    if not examples:
        return ""
    return f"{examples['attack'].item()}, ε = {_pixels(examples['epsilon'].item())}"


def _training(rows: Sequence[Record], logs: Mapping[str, Log]) -> list[dict[str, str]]:
    """How each stage was run: epochs, the chosen one, speed."""
    evaluated = {row["stage"]: row for row in rows}
    table = []
    for stage in dict.fromkeys([*logs, *evaluated]):
        lines, row = logs.get(stage, []), evaluated.get(stage, {})
        speed = [line["images_per_second"] for line in lines if line.get("images_per_second")]
        chosen, seconds = row.get("checkpoint_epoch"), row.get("seconds")
        table.append(
            {
                "stage": _stage(stage),
                "epochs": str(len(lines)) if lines else "",
                "chosen": "" if chosen is None else str(chosen),
                "speed": f"{np.median(speed):,.0f}" if speed else "",
                "evaluation": "" if seconds is None else f"{seconds:,.1f} s",
            }
        )
    return table


def _environment(run: Record, results: Record) -> list[tuple[str, str]]:
    versions = run.get("versions") or results.get("versions") or {}
    known = [("created", run.get("created")), ("revision", run.get("revision"))]
    facts = [(label, str(value)) for label, value in known if value]
    return facts + [(name, str(version)) for name, version in versions.items()]


def _flat(tree: Record, prefix: str = "") -> list[tuple[str, str]]:
    """The config's fields by dotted name, as flags spell them."""
    fields = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            fields.extend(_flat(value, f"{prefix}{name}."))
        else:
            fields.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return fields


def _stage(stage: str) -> str:
    return STAGES.get(stage, stage)


def _score(row: Record, accuracy: float | None) -> str:
    """A row's accuracy in percent, no finer than its number of images allows; '' for None."""
    digits = 2 if row["images"] >= MEASURED_FINELY else 1
    return "" if accuracy is None else f"{100 * accuracy:.{digits}f} %"


def _sparsity(share: float) -> str:
    """With as many digits as tell the kept share from its neighbours: 95.0 %, 99.95 %."""
    return f"{100 * share:.{2 if share > 0.99 else 1}f} %"
