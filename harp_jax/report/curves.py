"""Draws robust accuracy over the radius of the attack."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from harp_jax.report import plots

COLOURS = (plots.MUTED, plots.NATURAL, plots.ROBUST)


@dataclasses.dataclass(frozen=True)
class SecurityCurve:
    """Accuracy of one network by radius; radii on the [0, 1] scale, ascending."""

    name: str
    epsilons: Float[np.ndarray, " radius"]
    robust: Float[np.ndarray, " radius"]


def security(curves: Sequence[SecurityCurve]) -> Figure:
    """Draws one line a network.

    Args:
        curves: Curves of the networks; at least one.

    Returns:
        A figure with one axes.
    """
    figure = Figure(figsize=(plots.WIDTH, 2.9), layout="constrained")
    axes = figure.subplots()
    for place, curve in enumerate(curves):
        style = {"color": COLOURS[place % len(COLOURS)], "linewidth": 1.6, "label": curve.name}
        axes.plot(curve.epsilons, curve.robust, marker="o", markersize=3, **style)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(plots.percent_ticks())
    axes.set_xlabel("radius of the attack (epsilon)", **plots.WRITING)
    plots.calm(axes)
    axes.legend(frameon=False, fontsize=7.5, labelcolor=plots.INK)
    return figure
