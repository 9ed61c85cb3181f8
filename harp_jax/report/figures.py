"""Draws the figures of a run, from what it has recorded."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from harp_jax.report import curves, pictures, plots, sizes, words
from harp_jax.report.recorded import Log, Record
from harp_jax.workdir.records import STAGES

MAXIMUM_EXAMPLES = 8


def of_sizes(sized: Record | None, rows: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    """Draws accuracy over bytes if the sizes of several networks are known."""
    networks = sizes.networks(sized, rows)
    if len(networks) > 1:
        yield "size", sizes.accuracy_over_bytes(networks)


def of_run(
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
    logged = [stage_curves(stage, lines, chosen.get(stage)) for stage, lines in logs.items()]
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


def stage_curves(stage: str, lines: Log, chosen: int | None) -> plots.StageCurves:
    """Returns the logged values of a stage; without a chosen epoch, the last best one is."""
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
