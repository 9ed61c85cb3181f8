"""Draws clean and attacked images, with the classes that the networks see in them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harp_jax.report import plots, theme

TIMES = "\N{MULTIPLICATION SIGN}"

Pictures = Float[np.ndarray, "example height width channels"]
Classes = Int[np.ndarray, " example"]


@dataclasses.dataclass(frozen=True)
class StageExamples:
    """Attacked images of one stage's network and the classes it sees in them."""

    name: str
    adversarial: Pictures
    natural_prediction: Classes
    adversarial_prediction: Classes


def attacked(
    images: Pictures, labels: Classes, stages: Sequence[StageExamples], scale: float
) -> Figure:
    """Draws clean images and, for each stage, the attacked images and their perturbations.

    Args:
        images: Clean images in [0, 1], with 1 or 3 channels; at least one.
        labels: Classes of the images.
        stages: The attacked images by stage; at least one.
        scale: The change of a pixel, in (0, 1], that is drawn as black or white.

    Returns:
        A figure with one axes in inches: 1 + 2·stages rows, one column an image.
    """
    rows: list[tuple[str, Pictures, StageExamples | None]] = [("clean", images, None)]
    for stage in stages:
        change = 0.5 + (stage.adversarial - images) / (2 * scale)
        rows.append((f"{stage.name},\nattacked", stage.adversarial, stage))
        rows.append((f"change\n{TIMES} {0.5 / scale:.3g}", change, None))
    side = min(1.2, (plots.WIDTH - 1.1) / len(images) - 0.06)
    gaps = [0.24] + [0.16, 0.24] * len(stages)
    height = side * len(rows) + sum(gaps) + 0.06
    figure = Figure(figsize=(plots.WIDTH, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    bottom = height
    for gap, (name, shown, stage) in zip(gaps, rows, strict=True):
        bottom -= side + gap
        _name(axes, bottom + side / 2, name)
        for column, label in enumerate(labels):
            left = 1.1 + column * (side + 0.06)
            # Three channels even for grey images: their shades then need no colour map.
            pixels = np.clip(np.broadcast_to(shown[column], (*shown.shape[1:3], 3)), 0.0, 1.0)
            place = (left, left + side, bottom, bottom + side)
            axes.imshow(pixels, extent=place, interpolation="none")  # the reader's screen scales it
            if shown is images:
                axes.text(
                    left + side / 2, height - 0.19, f"label {label}", ha="center", **plots.WRITING
                )
            if stage is not None:
                _verdict(axes, left + side / 2, bottom - 0.04, stage, column, int(label))
    axes.set(xlim=(0, plots.WIDTH), ylim=(0, height), aspect="auto")
    return figure


def _name(axes: Axes, y: float, name: str) -> None:
    """Writes a row's name at its left, each line by itself, so that any font ends at one place."""
    lines = name.split("\n")
    for place, line in enumerate(lines):
        height = y + 0.14 * ((len(lines) - 1) / 2 - place)
        axes.text(0.98, height, line, ha="right", va="center", **plots.WRITING)


def _verdict(axes: Axes, x: float, y: float, stage: StageExamples, column: int, label: int) -> None:
    """Writes the class that a network saw before and after the attack, e.g. 3 ✓ → 8 ✗."""
    style: dict[str, Any] = {"va": "top", "fontsize": 7.5}
    before, after = stage.natural_prediction[column], stage.adversarial_prediction[column]
    for offset, side, seen in ((-0.1, "right", before), (0.1, "left", after)):
        mark, colour = ("✓", theme.CORRECT) if seen == label else ("✗", theme.WRONG)
        axes.text(x + offset, y, f"{seen} {mark}", ha=side, color=colour, **style)
    axes.text(x, y, "→", ha="center", color=plots.MUTED, **style)
