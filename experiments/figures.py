"""Summary and figures of a matrix that `experiments.compare` ran.

python -m experiments.figures experiments/results/fashion_matrix.csv

Reads NAME_matrix.csv and NAME_epochs.csv; writes NAME_summary.csv (mean and spread over seeds),
NAME_accuracy.png (accuracy over sparsity), NAME_kept.png (fraction kept in each layer) and
NAME_time.png (validation accuracy over training time). A table without AutoAttack compares
settings: it gives NAME_summary.csv and NAME_settings.png (validation accuracy, to choose by).
"""

import argparse
import itertools
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.matrix import DENSE
from experiments.tables import KEY, Line, read, write
from harp_jax.report import plots

ATTACKED = "autoattack"
ACCURACIES = ("validation_robust", "natural", "pgd20", ATTACKED)
OF_EPOCHS = ("seconds", "robust")
COLUMNS = 2  # panels side by side in a figure
_NUMBER = r"\d+(\.\d*)?([eE][+-]?\d+)?"
_SHARE = (_NUMBER, 0.0, 1.0, "numbers in [0, 1]")
# By column: the form, the smallest and the largest number, and all that in words.
ALLOWED = {
    "target": (_NUMBER, 1e-12, 1.0, "numbers in (0, 1]"),
    "seed": (r"\d+", 0.0, math.inf, "whole numbers"),
    "seconds": (_NUMBER, 0.0, math.inf, "numbers >= 0"),
    **dict.fromkeys((*ACCURACIES, "robust"), _SHARE),
}
IN_SIGHT = 0.12  # range of accuracies shown, below the best


def groups(lines: Sequence[Line], *names: str) -> Iterator[tuple[tuple[str, ...], list[Line]]]:
    """Groups rows by their values in some columns, in order of first appearance."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[name] for name in names), []).append(line)
    yield from found.items()


def _is_dense(line: Line) -> bool:
    return line["method"] == DENSE or float(line["target"]) == 1


def in_order(lines: Sequence[Line]) -> list[Line]:
    """Sorts rows by target, largest first, then by seed, smallest first."""
    return sorted(lines, key=lambda line: (-float(line["target"]), int(line["seed"])))


def summary(lines: Sequence[Line]) -> list[Line]:
    """Returns one row per method and target: mean over the seeds and half their range."""
    rows = []
    for (target, method), cells in groups(lines, "target", "method"):
        row: Line = {"target": target, "method": method, "seeds": len(cells)}
        for name in (name for name in ACCURACIES if name in cells[0]):
            values = np.array([float(cell[name]) for cell in cells])
            row[name] = round(float(values.mean()), 4)
            row[f"{name}_spread"] = round(float(np.ptp(values)) / 2, 4) if len(cells) > 1 else ""
        row["kept"] = " ".join(sorted({cell["kept"] for cell in cells}))
        rows.append(row)
    best = ACCURACIES[-1] if ACCURACIES[-1] in lines[0] else ACCURACIES[0]
    return sorted(rows, key=lambda row: (-float(row["target"]), -row[best]))


def colours(lines: Sequence[Line]) -> dict[str, Any]:
    """Returns a colour for every method; the dense network has the text colour."""
    methods = [method for (method,), _ in groups(lines, "method") if method != DENSE]
    shades = matplotlib.colormaps["tab20"]([*range(0, 20, 2), *range(1, 20, 2)])
    return {
        DENSE: plots.INK,
        **dict(zip(methods, itertools.cycle(map(tuple, shades)), strict=False)),
    }


def accuracy(lines: Sequence[Line]) -> Figure:
    """Draws accuracy over sparsity: natural solid, AutoAttack dashed, dense horizontal."""
    figure = Figure(figsize=(plots.WIDTH, 4.4), layout="constrained")
    axes = figure.subplots()
    rows, shades = summary(lines), colours(lines)
    kinds = (("natural", "-"), ("autoattack", (0, (4, 2))))
    for (method,), points in groups(rows, "method"):
        for name, style in kinds:
            values = [point[name] for point in points]
            line = {"color": shades[method], "linewidth": 1.5, "linestyle": style}
            label = method if name == "natural" else None
            if _is_dense(points[0]):
                axes.axhline(values[0], label=label, **line)
            else:
                places = [float(point["target"]) for point in points]
                axes.plot(places, values, marker="o", markersize=3, label=label, **line)
    axes.set_xscale("log")
    axes.invert_xaxis()
    targets = sorted({float(row["target"]) for row in rows if not _is_dense(row)})
    axes.set_xticks(targets, [f"{100 - 100 * target:g} %" for target in targets])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(plots.percent_ticks())
    axes.set_xlabel("share of the weights that is pruned", **plots.WRITING)
    axes.set_title("natural accuracy (solid) and under AutoAttack (dashed)", **plots.TITLE)
    plots.calm(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7.5)
    return figure


def kept(lines: Sequence[Line], layers: Sequence[int]) -> Figure:
    """Draws the fraction kept per layer: one panel per target, one line per method, first seed."""
    pruned = [line for line in lines if not _is_dense(line)]
    targets = [target for (target,), _ in groups(pruned, "target")]
    figure, panels = _panels(targets, "share kept of each layer's weights")
    shades = colours(lines)
    for axes, (_, of_target) in zip(panels, groups(pruned, "target"), strict=True):
        for (method,), cells in groups(of_target, "method"):
            counts = np.array(cells[0]["kept_per_layer"].split(), float)
            shares = counts / np.array(layers)
            style = {"color": shades[method], "linewidth": 1.3, "marker": "o", "markersize": 3}
            axes.plot(range(1, len(shares) + 1), shares, label=method, **style)
        axes.set_yscale("log")
        axes.set_xticks(range(1, len(layers) + 1))
        plots.log_percent_axis(axes)
        axes.set_xlabel("layer", **plots.WRITING)
        plots.calm(axes)
    _legend(figure, panels)
    return figure


def time(lines: Sequence[Line]) -> Figure:
    """Draws robust validation accuracy over minutes of pruning and finetuning, first seed.

    Each epoch counts with the median time of its stage, so that a paused run is not shown slower.
    """
    pruned = [line for line in lines if not _is_dense(line)]
    targets = [target for (target,), _ in groups(pruned, "target")]
    figure, panels = _panels(targets, "robust accuracy on validation data")
    shades = colours(lines)
    for axes, (_, of_target) in zip(panels, groups(pruned, "target"), strict=True):
        for (method,), cells in groups(of_target, "method"):
            rows = [row for row in cells if row["seed"] == cells[0]["seed"]]
            minutes = np.cumsum([_median(rows, row["stage"]) for row in rows]) / 60
            values = [float(row["robust"]) for row in rows]
            axes.plot(minutes, values, color=shades[method], linewidth=1.3, label=method)
        axes.yaxis.set_major_formatter(plots.percent_ticks())
        axes.set_xlabel("minutes", **plots.WRITING)
        plots.calm(axes)
    _legend(figure, panels)
    return figure


def _median(rows: Sequence[Line], stage: str) -> float:
    return float(np.median([float(row["seconds"]) for row in rows if row["stage"] == stage]))


def settings(lines: Sequence[Line]) -> Figure:
    """Draws robust validation accuracy per method, best first: dots are seeds, bars are means.

    The axis ends `IN_SIGHT` below the best; lower means are written there as numbers.
    """
    rows = [row for row in summary(lines) if not _is_dense(row)]
    lowest = rows[0]["validation_robust"] - IN_SIGHT
    figure = Figure(figsize=(plots.WIDTH, 0.9 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        key = (row["target"], row["method"])
        cells = [line for line in lines if (line["target"], line["method"]) == key]
        seeds = [float(cell["validation_robust"]) for cell in cells]
        style = {"markersize": 4, "alpha": 0.6, "markeredgewidth": 0, "color": plots.ROBUST}
        axes.plot(seeds, [place] * len(seeds), "o", **style)
        mean = row["validation_robust"]
        axes.plot(mean, place, "|", markersize=11, color=plots.INK)
        if mean < lowest:
            label = f"\N{LEFTWARDS ARROW} {100 * mean:.1f} %"
            axes.text(lowest, place, label, va="center", **plots.WRITING)
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=lowest)
    axes.xaxis.set_major_formatter(plots.percent_ticks())
    axes.set_xlabel("robust accuracy on validation data: a seed, | mean", **plots.WRITING)
    plots.calm(axes)
    return figure


def _panels(targets: Sequence[str], what: str) -> tuple[Figure, list[Axes]]:
    rows = -(-len(targets) // COLUMNS)
    figure = Figure(figsize=(plots.WIDTH, 2.9 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, min(len(targets), COLUMNS), sharey=True, squeeze=False)
    flat = list(itertools.chain.from_iterable(panels))
    for axes in flat[len(targets) :]:
        axes.remove()
    for axes, target in zip(flat, targets, strict=False):
        axes.set_title(f"target: {100 * float(target):g} %", **plots.TITLE)
    figure.supylabel(what, **plots.WRITING)
    return figure, flat[: len(targets)]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    style = {"frameon": False, "fontsize": 7.5, "ncols": 5}
    figure.legend(handles.values(), handles.keys(), loc="outside lower left", **style)


def main() -> None:
    """Writes the summary and the figures into the table's folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=pathlib.Path, help="NAME_matrix.csv")
    table = parser.parse_args().table
    name = table.stem.removesuffix("_matrix")
    beside = {kind: table.with_name(f"{name}_{kind}") for kind in ("summary", "epochs")}
    lines = in_order(checked(table, "kept", "kept_per_layer", *ACCURACIES[:2]))
    write(beside["summary"].with_suffix(".csv"), summary(lines))
    if ATTACKED in lines[0]:
        layers = [line["kept_per_layer"] for line in lines if line["method"] == DENSE]
        if not layers:
            raise SystemExit(f"error: {table}: has no row of {DENSE!r} yet, which figures show")
        epochs = in_order(checked(beside["epochs"].with_suffix(".csv"), "stage", *OF_EPOCHS))
        sizes = [int(size) for size in layers[0].split()]
        figures = {"accuracy": accuracy(lines), "kept": kept(lines, sizes), "time": time(epochs)}
    else:
        figures = {"settings": settings(lines)}
    for kind, figure in figures.items():
        table.with_name(f"{name}_{kind}.png").write_bytes(plots.to_png_bytes(figure))


def checked(path: pathlib.Path, *columns: str) -> list[Line]:
    """Reads a table whose rows can be drawn; raises a SystemExit in one line if they cannot."""
    if not path.exists():
        raise SystemExit(f"error: {path}: is not there; allowed are tables of experiments.compare")
    lines = read(path, *KEY, *columns)
    seen = set()
    for line in lines:
        cell = ", ".join(line[key] for key in KEY)
        for name in (name for name in line if name in ALLOWED):
            pattern, low, high, allowed = ALLOWED[name]
            if not re.fullmatch(pattern, line[name]) or not low <= float(line[name]) <= high:
                said = f"{name}={line[name]!r} in the row of {cell}"
                raise SystemExit(f"error: {path}: {said}; allowed are {allowed}")
        if not re.fullmatch(r"\d+( \d+)*|", line.get("kept_per_layer", "")):
            said = f"kept_per_layer={line['kept_per_layer']!r} in the row of {cell}"
            raise SystemExit(f"error: {path}: {said}; allowed are whole numbers")
        if "epoch" not in line and cell in seen:
            raise SystemExit(f"error: {path}: has two rows of {cell}; allowed is one")
        seen.add(cell)
    layers = {len(line["kept_per_layer"].split()) for line in lines if "kept_per_layer" in line}
    if len(layers) > 1:
        said = f"has rows of {' and '.join(map(str, sorted(layers)))} layers"
        raise SystemExit(f"error: {path}: {said}; allowed are those of one network")
    if all(map(_is_dense, lines)):
        allowed = "allowed are tables of experiments.compare with one or more"
        raise SystemExit(f"error: {path}: has no row of a pruned network; {allowed}")
    return lines


if __name__ == "__main__":
    main()
