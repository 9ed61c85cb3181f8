"""Writes the page of a finished workdir: tables, curves, layer-wise rates and attacked images.

The page is one file with embedded figures and without scripts. Parts whose data the workdir lacks
are left out. Epochs count from 0, as in the logs.
"""

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from harp_jax.report import curves, pictures, plots, sizes, words
from harp_jax.workdir import files, forms, records
from harp_jax.workdir.records import STAGES, ReportError

MAXIMUM_EXAMPLES = 8

Record = Mapping[str, Any]
Log = Sequence[Record]  # one record an epoch

__all__ = ["ReportError", "write"]


def write(workdir: epath.PathLike) -> epath.Path:
    """Writes `report/index.html` of a finished run.

    Args:
        workdir: Folder with `results.json` and, if they exist, `config.json`,
            `<stage>/metrics.jsonl`, `examples.npz` and `network.json`.

    Returns:
        The path of the page. Its content depends only on these files.

    Raises:
        ReportError: If `results.json` is missing or has no rows, or a file cannot be read or has
            another form; names the file.
    """
    workdir = epath.Path(workdir)
    results = records.read_results(workdir)
    rows = results["rows"]
    path = workdir / files.CONFIG
    run = records.read_json(path, forms.CONFIG) if path.exists() else results
    logs = {stage: records.read_metrics(workdir / stage / files.METRICS) for stage in STAGES}
    logs = {stage: lines for stage, lines in logs.items() if lines}
    examples = records.read_examples(workdir / files.EXAMPLES)
    path = workdir / files.SIZES
    sized = sizes.of_rows(records.read_json(path, forms.SIZES) if path.exists() else None, rows)
    figures = [*_size_figure(sized, rows), *_figures(rows, logs, examples)]
    html = _template().render(
        **_headline(run, results),
        rows=rows,
        columns=list(dict.fromkeys(name for row in rows for name in row["robust"])),
        summary=_summary(rows),
        precision=_precision(rows),
        flops=_flops(rows),
        warnings=[(row["stage"], text) for row in rows for text in row.get("warnings", [])],
        autoattacks=list(_autoattacks(rows)),
        attacks=[(name, words.attack(each)) for name, each in results.get("attacks", {}).items()],
        dataset=results.get("dataset", {}),
        chosen_on=results.get("config", {}).get("data", {}).get("select_on", "validation"),
        complete=results.get("complete", True),
        notes=results.get("notes", []),
        size=sizes.table(sized, rows),
        figures={name: _embedded(figure) for name, figure in figures},
        shown_attack=_shown_attack(examples),
        training=_training(rows, logs),
        environment=_environment(run, results),
        settings=list(_flat(run.get("config", {}))),
    )
    page = workdir / files.REPORT / files.PAGE
    files.write_atomically(page, html.encode())
    return page


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harp_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "stage": words.stage,
        "count": "{:,}".format,
        "sparsity": words.sparsity,
    }
    environment.globals["score"] = words.score
    return environment.get_template("report.html")


def _headline(run: Record, results: Record) -> dict[str, Any]:
    """Builds the title and the facts at the head of the page."""
    config, rows = run.get("config", {}), results["rows"]
    model = str(config.get("model", ""))
    data = results.get("dataset", {}).get("name") or config.get("data", {}).get("name", "")
    pruned = [row for row in rows if row["sparsity"] > 0]
    prune = config.get("prune", {}) if pruned else {}
    target, by_channel = prune.get("target"), prune.get("granularity") == "channel"
    facts = [
        ("dataset", data),
        ("model", model),
        ("target sparsity", words.sparsity(1 - target) if target and not by_channel else ""),
        ("target channels", f"{100 * target:g} %" if target and by_channel else ""),
        ("seed", str(results.get("seed", ""))),
        ("date", str(run.get("created") or "")[:10]),
    ]
    return {
        "title": " on ".join(name for name in (model, data) if name) or "A run",
        "subtitle": f"pruned to {words.sparsity(pruned[-1]['sparsity'])} sparsity"
        if pruned
        else "",
        "facts": [(label, fact) for label, fact in facts if fact],
    }


def _summary(rows: Sequence[Record]) -> dict[str, Any] | None:
    """Summarises the last network and the dense one, under the attack worst for the last."""
    dense, last = rows[0], rows[-1]
    if last is dense or dense["stage"] != "pretrain":
        return None
    shared = [name for name in last["robust"] if name in dense["robust"]]
    worst = min(shared, key=lambda name: last["robust"][name]) if shared else None
    return {"dense": dense, "last": last, "attack": worst}


def _flops(rows: Sequence[Record]) -> list[float]:
    """Computes the kept share of the FLOPs of every row; nothing if a row has no count."""
    if any("flops" not in row for row in rows):
        return []
    return [row["flops"] / row["total_flops"] for row in rows]


def _precision(rows: Sequence[Record]) -> dict[str, str]:
    """Tells the number of test images and the largest standard error that follows."""
    counts = sorted({row["images"] for row in rows})
    errors = [
        math.sqrt(score * (1 - score) / row["images"])
        for row in rows
        for score in (row["natural"], *row["robust"].values())
    ]
    images = " or ".join(f"{count:,}" for count in counts)
    return {"images": images, "error": f"{100 * max(errors):.2g}"}


def _autoattacks(rows: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Builds a table per AutoAttack: the accuracy of each network after each of its parts."""
    for name in dict.fromkeys(name for row in rows for name in row.get("autoattack", {})):
        found = [
            (row, row["autoattack"][name]) for row in rows if name in row.get("autoattack", {})
        ]
        parts = list(found[0][1]["after"])
        yield {
            "name": name,
            "parts": parts,
            "rows": [
                {
                    "stage": row["stage"],
                    "scores": [words.score(row, each["after"][part]) for part in parts],
                    "balanced": words.score(row, each["balanced"][parts[-1]]),
                    "seconds": f"{sum(each['seconds'].values()):,.0f} s",
                }
                for row, each in found
            ],
        }


def _embedded(figure: Figure) -> str:
    return f"data:image/png;base64,{base64.b64encode(plots.to_png_bytes(figure)).decode()}"


def _size_figure(sized: Record | None, rows: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    networks = sizes.networks(sized, rows)
    if len(networks) > 1:
        yield "size", sizes.accuracy_over_bytes(networks)


def _figures(
    rows: Sequence[Record], logs: Mapping[str, Log], examples: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Figure]]:
    """Draws all figures that have data, by the name of their caption in the template."""
    layers = [layer for layer in rows[-1].get("layers", []) if layer["parameters"]]
    if rows[-1]["sparsity"] > 0 and layers:
        counts = [
            plots.LayerCount(each["layer"], each["kept"], each["parameters"]) for each in layers
        ]
        yield "layers", plots.kept_shares(counts)
    yield from _pruning_figures(logs.get("prune", []))
    chosen = {row["stage"]: row.get("checkpoint_epoch") for row in rows}
    logged = [_curves(stage, lines, chosen.get(stage)) for stage, lines in logs.items()]
    if logged:
        yield "accuracy", plots.accuracies(logged)
        yield "loss", plots.training_loss(logged)
    radii = [
        curves.SecurityCurve(
            name=words.stage(row["stage"]),
            epsilons=np.array([point["epsilon"] for point in row["curve"]], dtype=np.float64),
            robust=np.array([point["robust"] for point in row["curve"]], dtype=np.float64),
        )
        for row in rows
        if row.get("curve")
    ]
    if radii:
        yield "security", curves.security(radii)
    yield from _example_figure(examples, [row["stage"] for row in rows])


def _pruning_figures(lines: Log) -> Iterator[tuple[str, Figure]]:
    epochs = np.array([line["epoch"] for line in lines], dtype=np.int64)
    target = None
    if lines and lines[-1].get("compression"):
        target = lines[-1]["compression"]["target"]
        course = plots.CompressionCurves(
            epochs=epochs,
            loss=_series(lines, "compression", "loss"),
            gamma=_series(lines, "compression", "gamma"),
            rate=_series(lines, "compression", "rate"),
            target=target,
            frozen=_first(lines, "frozen"),
            reached=_first(lines, "reached"),
        )
        if not np.isnan(course.gamma).all():  # with fixed rates there is nothing to see
            yield "compression", plots.compression(course)
        if lines[-1]["compression"].get("unit") == "FLOPs":
            target = None  # a share of FLOPs, not a rate of channels
    if lines and lines[-1].get("rates"):
        rates = {name: _series(lines, "rates", name) for name in lines[-1]["rates"]}
        yield "rates", plots.layer_rates(epochs, rates, target)


def _first(lines: Log, flag: str) -> int | None:
    epochs = (line["epoch"] for line in lines if (line.get("compression") or {}).get(flag))
    return next(epochs, None)


def _series(lines: Log, group: str, field: str) -> np.ndarray:
    """Returns one logged number by epoch; nan where it was not measured."""
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
        pictures.StageExamples(
            name=words.stage(stage).split()[0],
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
        yield "examples", pictures.attacked(images, first["labels"], attacked, largest or 1.0)


def _shown_attack(examples: Mapping[str, np.ndarray]) -> str:
    if not examples:
        return ""
    return f"{examples['attack'].item()}, ε = {words.pixels(examples['epsilon'].item())}"


def _training(rows: Sequence[Record], logs: Mapping[str, Log]) -> list[dict[str, str]]:
    """Lists how each stage was trained: its epochs, the chosen one, its speed."""
    evaluated = {row["stage"]: row for row in rows}
    table = []
    for stage in dict.fromkeys([*logs, *evaluated]):
        lines, row = logs.get(stage, []), evaluated.get(stage, {})
        speed = [line["images_per_second"] for line in lines if line.get("images_per_second")]
        chosen, seconds = row.get("checkpoint_epoch"), row.get("seconds")
        table.append(
            {
                "stage": words.stage(stage),
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
    """Returns the config's fields by dotted name, as flags spell them."""
    fields = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            fields.extend(_flat(value, f"{prefix}{name}."))
        else:
            fields.append((f"{prefix}{name}", json.dumps(value, ensure_ascii=False)))
    return fields
