"""Draws the figures of the report: from plain numbers to a matplotlib figure.

Figures are built from `matplotlib.figure.Figure` alone. `pyplot` keeps a global list of figures
and looks for a display; without it a figure is a value, and the same data give the same bytes.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from harp_jax.report.theme import AXIS, INK, MUTED, NATURAL, PAPER, ROBUST, TRACK, ramp

WIDTH = 8.6  # inches; the page shows an inch as about 100 pixels
DOTS_PER_INCH = 200
MAXIMUM_MARKED = 30  # epochs up to which each one gets a dot of its own
WRITING: dict[str, Any] = {"fontsize": 7.5, "color": INK}
TITLE: dict[str, Any] = {"fontsize": 8.5, "color": INK, "loc": "left", "pad": 7}
DASHED: dict[str, Any] = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 2))}
DOTTED: dict[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": ":"}
GAMMA = "\N{GREEK SMALL LETTER GAMMA}"

Series = Float[np.ndarray, " epoch"]
Epochs = Int[np.ndarray, " epoch"]


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """Number of kept prunable weights of one layer."""

    layer: str
    kept: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class StageCurves:
    """Logged values of one stage, one an epoch; accuracies in [0, 1], nan where not measured."""

    name: str
    epochs: Epochs
    loss: Series
    natural: Series
    robust: Series
    chosen: int | None  # the epoch whose checkpoint was kept


@dataclasses.dataclass(frozen=True)
class CompressionCurves:
    """The course of the compression loss; rates and target are kept shares in (0, 1]."""

    epochs: Epochs
    loss: Series
    gamma: Series
    rate: Series
    target: float
    frozen: int | None  # first epoch with a frozen γ
    reached: int | None  # first epoch that reached the target


def kept_shares(layers: Sequence[LayerCount]) -> Figure:
    """Draws one horizontal bar a layer: the share of its weights that is kept.

    Args:
        layers: Counts in the network's order, drawn from top to bottom; at least one.

    Returns:
        A figure with one axes, logarithmic where a share is below a tenth.
    """
    shares = np.array([layer.kept / layer.parameters for layer in layers])
    overall = sum(layer.kept for layer in layers) / sum(layer.parameters for layer in layers)
    wide = (smallest := min(shares[shares > 0], default=1.0)) < 0.1
    figure = Figure(figsize=(WIDTH, 0.8 + 0.25 * len(layers)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(layers))
    axes.set_xscale("log" if wide else "linear")
    axes.set_xlim(10 ** np.floor(np.log10(smallest * 0.9)) if wide else 0, 1)
    axes.minorticks_off()
    axes.barh(rows, np.ones(len(layers)), height=0.68, color=TRACK, label="all")
    axes.barh(rows, shares, height=0.68, color=NATURAL, label="kept")
    axes.axvline(overall, label="whole network", **DASHED)
    above = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom", **WRITING}
    axes.text(overall, 1.0, f"whole network {_percent(overall)}", **above)
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", **WRITING}
    for row, (layer, share) in enumerate(zip(layers, shares, strict=True)):
        axes.text(1.085, row, _percent(share), ha="right", **beside)
        axes.text(1.1, row, f"{layer.kept:,} of {layer.parameters:,}", **beside)
    axes.set_yticks(rows, [layer.layer for layer in layers])
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("kept share of the layer's weights", **WRITING)
    calm(axes)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def compression(curves: CompressionCurves) -> Figure:
    """Draws compression loss, γ and global rate over the epochs of pruning, side by side.

    Args:
        curves: The logged values, at least one epoch.

    Returns:
        A figure with three axes, in this order.
    """
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    loss, gamma, rate = figure.subplots(1, 3)
    _line(loss, curves.epochs, curves.loss, NATURAL, "compression loss")
    _line(gamma, curves.epochs, curves.gamma, NATURAL, GAMMA)
    _line(rate, curves.epochs, curves.rate, NATURAL, "rate")
    rate.axhline(curves.target, label="target", **DASHED)
    beside = {"transform": rate.get_yaxis_transform(), "va": "bottom", **WRITING}
    # On the left, where the rate is still far above.
    rate.text(0.03, curves.target, f"target {_percent(curves.target)}", **beside)
    rate.set_yscale("log")
    rate.margins(y=0.12)
    log_percent_axis(rate)
    for axes in (loss, gamma):
        axes.set_ylim(bottom=0)
    for axes, epoch in ((loss, curves.reached), (gamma, curves.frozen), (rate, curves.reached)):
        _epoch_axis(axes, curves.epochs)
        if epoch is not None:
            axes.axvline(epoch, label="since", **DOTTED)
    loss.set_title("compression loss", **TITLE)
    gamma.set_title(f"its weight {GAMMA}", **TITLE)
    rate.set_title("kept share (soft)", **TITLE)
    return figure


def layer_rates(epochs: Epochs, rates: Mapping[str, Series], target: float | None) -> Figure:
    """Draws every layer's rate over the epochs of pruning, with the names at the lines' ends.

    Args:
        epochs: The epochs.
        rates: Layer name -> kept share in (0, 1] by epoch, in the network's order; at least one.
        target: The global kept share aimed at, or None for no line.

    Returns:
        A figure with one logarithmic axes.
    """
    figure = Figure(figsize=(WIDTH, max(3.2, 0.8 + 0.165 * len(rates))), layout="constrained")
    axes = figure.subplots()
    shades = ramp(len(rates))
    ends = []
    for shade, (layer, values) in zip(shades, rates.items(), strict=True):
        _line(axes, epochs, values, shade, layer)
        ends.append((layer, float(values[-1]), shade))
    if target is not None:
        axes.axhline(target, label="target", **DASHED)
        ends.append((f"target {_percent(target)}", target, INK))
    axes.set_yscale("log")
    axes.margins(x=0.01)
    log_percent_axis(axes)
    _epoch_axis(axes, epochs)
    low, high = np.log(axes.get_ylim())
    heights = (np.log([end for _, end, _ in ends]) - low) / (high - low)
    places = spread(heights, gap=0.155 / figure.get_figheight())
    for (name, end, shade), place in zip(ends, places, strict=True):
        leader = {"arrowstyle": "-", "color": shade, "linewidth": 0.7, "relpos": (0, 0.5)}
        style = {"textcoords": "axes fraction", "va": "center", "arrowprops": leader, **WRITING}
        axes.annotate(name, (axes.get_xlim()[1], end), xytext=(1.045, float(place)), **style)
    axes.set_title("kept share of each layer (soft)", **TITLE)
    return figure


def accuracies(stages: Sequence[StageCurves]) -> Figure:
    """Draws natural and robust validation accuracy over the epochs, one panel a stage.

    Args:
        stages: The stages in order; at least one.

    Returns:
        A figure with one axes a stage, all on one scale.
    """
    figure, panels = _stage_panels(stages, height=2.9)
    for axes, stage in zip(panels, stages, strict=True):
        at = stage.epochs == stage.chosen
        natural, robust = (stage.natural, NATURAL, "natural"), (stage.robust, ROBUST, "robust")
        for values, colour, label in (natural, robust):
            _line(axes, stage.epochs, values, colour, label)
            axes.scatter(stage.epochs[at], values[at], s=46, fc=PAPER, ec=colour, zorder=4)
    panels[0].yaxis.set_major_formatter(percent_ticks())
    handles, labels = panels[0].get_legend_handles_labels()
    style = {"ncols": 3, "frameon": False, "fontsize": 7.5, "labelcolor": INK}
    figure.legend(handles, labels, loc="outside upper right", **style)
    return figure


def training_loss(stages: Sequence[StageCurves]) -> Figure:
    """Draws the mean training loss over the epochs, one panel a stage.

    Args:
        stages: The stages in order; at least one.

    Returns:
        A figure with one axes a stage, all on one scale.
    """
    figure, panels = _stage_panels(stages, height=2.3)
    for axes, stage in zip(panels, stages, strict=True):
        _line(axes, stage.epochs, stage.loss, INK, "training loss")
    return figure


def to_png_bytes(figure: Figure) -> bytes:
    """Renders a figure as PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _stage_panels(stages: Sequence[StageCurves], height: float) -> tuple[Figure, list[Axes]]:
    """Draws one empty panel a stage, side by side on one scale, the chosen epoch marked."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = list(figure.subplots(1, len(stages), sharey=True, squeeze=False)[0])
    for axes, stage in zip(panels, stages, strict=True):
        axes.set_title(stage.name, **TITLE)
        _epoch_axis(axes, stage.epochs)
        if stage.chosen is not None:
            axes.axvline(stage.chosen, label="chosen epoch", **DOTTED)
    return figure, panels


def _line(axes: Axes, epochs: Epochs, values: Series, colour: object, label: str) -> None:
    marker = "o" if len(epochs) <= MAXIMUM_MARKED else None
    axes.plot(epochs, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=3)


def spread(wanted: Float[np.ndarray, " n"], gap: float) -> Float[np.ndarray, " n"]:
    """Moves places in [0, 1] apart until neighbours are `gap` from each other, in their order."""
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(wanted))
    even = wanted[order] - steps
    # Pushing up and pushing down each keep the distance, and so does their mean.
    upward = np.maximum.accumulate(even)
    downward = np.minimum.accumulate(even[::-1])[::-1]
    placed = np.empty_like(wanted)
    placed[order] = np.clip((upward + downward) / 2, 0.0, max(1.0 - steps[-1], 0.0)) + steps
    return placed


def calm(axes: Axes) -> None:
    """Removes from axes what does not carry data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=AXIS, linewidth=0.8)
    axes.tick_params(labelsize=7.5, labelcolor=INK, color=AXIS, length=3)
    axes.grid(axis="y", color=TRACK, linewidth=0.8)
    axes.set_axisbelow(True)


def _epoch_axis(axes: Axes, epochs: Epochs) -> None:
    calm(axes)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch", **WRITING)
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 0.5, epochs[0] + 0.5)


def log_percent_axis(axes: Axes) -> None:
    """Labels 1, 2 and 5 of each decade of the vertical axis, which are shares, in percent."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.minorticks_off()


def percent_ticks() -> FuncFormatter:
    """Returns a formatter of shares in percent."""
    return FuncFormatter(lambda value, _: f"{100 * value:.4g} %")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.01 else f"{100 * share:.2g} %"
