"""Draws several runs into one figure: a line or a point for each."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from harp_jax.report import plots, sizes, theme
from harp_jax.report.figures import stage_curves
from harp_jax.report.runs import Configuration, Run
from harp_jax.report.seeds import NATURAL, Attacks, row_of
from harp_jax.workdir.records import STAGES

_DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # where there are more lines than colours
_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": theme.INK}
_COLUMNS = 8  # of a legend


class Point(NamedTuple):
    """A network: its place, its size and its accuracies.

    Attributes:
        configuration: Place of its configuration.
        run: Name of its run.
        weights: Kept weights.
        bytes: Size of its file; None if it is not known.
        accuracies: Accuracy in [0, 1] by kind.
    """

    configuration: int
    run: str
    weights: int
    bytes: int | None
    accuracies: dict[str, float]


def style(place: int) -> dict[str, Any]:
    """Returns the colour and the dashes of the configuration at a place."""
    cycle, colour = divmod(place, len(theme.SERIES))
    return {"color": theme.SERIES[colour], "linestyle": _DASHES[cycle % len(_DASHES)]}


def epochs(found: Sequence[Configuration]) -> Figure | None:
    """Draws natural and robust validation accuracy over the epochs, one line a run.

    Args:
        found: Configurations of the same data and model.

    Returns:
        A figure with a row for each of both, and a column a stage; None without any epoch.
    """
    stages = [s for s in STAGES if any(s in run.found.logs for each in found for run in each.runs)]
    if not stages:
        return None
    figure = Figure(figsize=(plots.WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, len(stages), sharex="col", sharey="row", squeeze=False)
    for column, stage in enumerate(stages):
        panels[0, column].set_title(STAGES[stage], **plots.TITLE)
        for place, each in enumerate(found):
            for run in (run for run in each.runs if stage in run.found.logs):
                drawn = stage_curves(stage, run.found.logs[stage], None)
                name = {"label": run.name, "linewidth": 1.3, **style(place)}
                if len(drawn.epochs) == 1:
                    name["marker"] = "o"
                panels[0, column].plot(drawn.epochs, drawn.natural, markersize=3, **name)
                panels[1, column].plot(drawn.epochs, drawn.robust, markersize=3, **name)
        panels[1, column].set_xlabel("epoch", **plots.WRITING)
        panels[1, column].xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    for axes in panels.flat:
        plots.calm(axes)
    for axes, name in zip(panels[:, 0], ("natural", "robust"), strict=True):
        axes.set_ylabel(name, **plots.WRITING)
        axes.yaxis.set_major_formatter(plots.percent_ticks())
    _legend(figure, found)
    return figure


def points(found: Sequence[Configuration], attacks: Attacks) -> list[list[Point]]:
    """Lists the dense and the last network of each run, as far as its table has them.

    Args:
        found: Configurations of the same data and model.
        attacks: The attacks of their runs.

    Returns:
        The points of each run that has any.
    """
    runs = [(place, run) for place, each in enumerate(found) for run in each.runs]
    return [list(_points(place, run, attacks)) for place, run in runs if run.found.rows]


def _points(place: int, run: Run, attacks: Attacks) -> Iterator[Point]:
    sized = sizes.of_rows(run.found.sizes, run.found.rows)
    last = run.found.rows[-1]["stage"]
    for stage in dict.fromkeys(("pretrain", last)):
        row = row_of(run, stage)
        if row is not None:
            accuracies = attacks.accuracies(run, row)
            size = sizes.bytes_of(sized, row)
            yield Point(place, run.name, row["parameters"], size, accuracies)


def over_size(found: Sequence[Configuration], runs: Sequence[Sequence[Point]]) -> Figure | None:
    """Draws accuracy over kept weights and, as far as they are known, over bytes.

    Args:
        found: Configurations of the same data and model.
        runs: Points of each run, the dense network first.

    Returns:
        A figure with a row for natural accuracy and one for that under `worst_kind`, and a column
        for each size; None without a pruned network.
    """
    if not any(len({point.weights for point in run}) > 1 for run in runs):
        return None
    worst = worst_kind(runs)
    kinds = [NATURAL, *([worst] if worst else [])]
    amounts = ["weights", *(["bytes"] if any(p.bytes for run in runs for p in run) else [])]
    figure = Figure(figsize=(plots.WIDTH, 0.5 + 2.1 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(amounts), sharex="col", sharey="row", squeeze=False)
    for row, kind in enumerate(kinds):
        for column, amount in enumerate(amounts):
            _over(panels[row, column], runs, amount, kind)
        panels[row, 0].set_ylabel(kind, **plots.WRITING)
        panels[row, 0].yaxis.set_major_formatter(plots.percent_ticks())
    panels[-1, 0].set_xlabel("kept weights", **plots.WRITING)
    panels[-1, 0].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    panels[-1, 0].xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    if len(amounts) > 1:
        sizes.size_axis(panels[-1, 1])
    for axes in panels.flat:
        axes.minorticks_off()
    _legend(figure, found)
    return figure


def worst_kind(runs: Sequence[Sequence[Point]]) -> str | None:
    """Returns the attack that leaves the least of all that every network was measured under."""
    every = [point.accuracies for run in runs for point in run]
    shared = [kind for kind in every[0] if kind != NATURAL and all(kind in each for each in every)]
    return min(shared, key=lambda kind: sum(e[kind] for e in every)) if shared else None


def _over(axes: Axes, runs: Sequence[Sequence[Point]], amount: str, kind: str) -> None:
    """Draws one line a run: a ring for the dense network, a disc for the last one."""
    axes.set_xscale("log")
    for run in runs:
        known = [point for point in run if getattr(point, amount) is not None]
        drawn = [(getattr(point, amount), point.accuracies[kind]) for point in known]
        if not drawn:
            continue
        line = style(run[0].configuration)
        axes.plot(*np.transpose(drawn), linewidth=0.8, label=run[0].run, **line)
        for point, (x, y) in zip(known, drawn, strict=True):
            pruned = point.weights < max(each.weights for each in run) or len(run) == 1
            fill = line["color"] if pruned else theme.PAPER
            axes.plot(x, y, "o", color=line["color"], mfc=fill, markersize=5, zorder=3)
    plots.calm(axes)


def _legend(figure: Figure, found: Sequence[Configuration]) -> None:
    handles = [Line2D([], [], **style(place)) for place in range(len(found))]
    names = [each.letter for each in found]
    columns = min(len(found), _COLUMNS)
    figure.legend(handles, names, loc="outside upper right", ncols=columns, **_LEGEND)
