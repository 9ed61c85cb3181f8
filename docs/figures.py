"""Draws the figures of the concepts into docs/figures, the same bytes every time.

    python docs/figures.py
    python docs/figures.py --run=runs/figures

The second form first takes the numbers of a run's prune stage, which docs/figures/prune.csv keeps:

    python -m harp_jax.main --config=configs/digits.py --workdir=runs/figures \
        --config.prune.epochs=12 --config.prune.gamma0=0.05 --config.stages="('pretrain','prune')"
"""

import argparse
import ast
import csv
import json
import pathlib

import matplotlib as mpl

mpl.use("svg")

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle

from harp_jax.pruning import rate_from_logit, weight_mask

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
BLUE, ORANGE, GREEN, RED, GREY, PALE = (
    "#2f6db3",
    "#d97a16",
    "#3c8d40",
    "#c23b3b",
    "#6b6b6b",
    "#e4e7ec",
)
STYLE = {
    "svg.hashsalt": "harp_jax",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, RED]),
    "figure.facecolor": "white",
    "legend.frameon": False,
}


def take(workdir: pathlib.Path, folder: pathlib.Path = FOLDER) -> None:
    """Writes the epochs of a run's prune stage to prune.csv in a folder."""
    lines = (workdir / "prune" / "metrics.jsonl").read_text().splitlines()
    rows = []
    for epoch in map(json.loads, lines):
        compression = epoch["compression"]
        fields = {name: compression[name] for name in ("loss", "gamma", "rate", "kept", "target")}
        fields |= {f"rate_{layer}": rate for layer, rate in epoch["rates"].items()}
        rows.append({"epoch": epoch["epoch"]} | {n: f"{v:.5g}" for n, v in fields.items()})
    with (folder / "prune.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def epochs() -> dict[str, np.ndarray]:
    """Returns the columns of prune.csv."""
    with (FOLDER / "prune.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def rate() -> plt.Figure:
    """The rate over its logit, for two smallest rates."""
    figure, axes = plt.subplots(figsize=(5.2, 2.7), layout="constrained")
    logits = np.linspace(-8, 8, 200)
    for minimum, label in ((0.2, "$a_{min}$ = 0.2"), (0.001, "$a_{min}$ = 0.001")):
        axes.plot(logits, rate_from_logit(logits, minimum), label=label)
    axes.axhline(0.2, color=GREY, lw=0.8, ls=":")
    axes.set(
        xlabel="logit r, which is trained", ylabel="rate a: share that is kept", ylim=(0, 1.02)
    )
    axes.legend(loc="upper left")
    return figure


def _cells(axes: Axes, values: np.ndarray, kept: np.ndarray, title: str) -> None:
    """Draws a kernel as a grid; what is masked is pale."""
    rows, columns = values.shape
    for row in range(rows):
        for column in range(columns):
            alive = bool(kept[row, column])
            color = BLUE if alive else PALE
            axes.add_patch(Rectangle((column, rows - 1 - row), 0.94, 0.94, color=color))
            axes.text(
                column + 0.47,
                rows - 0.55 - row,
                f"{values[row, column]:.1f}".replace("-", "−"),
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if alive else GREY,
            )
    axes.set(xlim=(-0.1, columns), ylim=(-0.1, rows), title=title, xticks=[], yticks=[])
    axes.set_aspect("equal")
    axes.axis("off")


def mask() -> plt.Figure:
    """Which scores of a layer a mask keeps, by weights and by channels."""
    generator = np.random.default_rng(3)
    scores = np.round(generator.normal(size=(6, 5)), 1).astype(np.float32)
    channels = np.abs(scores).sum(1).astype(np.float32)
    rows = np.argsort(-channels)[:2]
    by_channel = np.zeros_like(scores)
    by_channel[rows] = 1
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), layout="constrained")
    for place, kept_rate in ((0, 0.5), (1, 0.2)):
        kept = np.asarray(weight_mask(jnp.asarray(scores), jnp.float32(kept_rate)))
        title = f"weights, a = {kept_rate}: {int(kept.sum())} of {scores.size}"
        _cells(axes[place], scores, kept, title)
    _cells(axes[2], scores, by_channel, "channels: 2 of 6 inputs (rows)")
    for each in axes:
        each.title.set_fontsize(9)
    return figure


def gamma() -> plt.Figure:
    """The compression loss and its weight over the epochs of a real run."""
    run = epochs()
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(5.6, 3.6), sharex=True, layout="constrained"
    )
    top.plot(run["epoch"], run["loss"], marker="o", ms=3)
    top.set(ylabel="$L_{hw}$")
    first = int(np.argmax(np.round(run["loss"], 4) == 0))
    top.axvline(first, color=GREY, lw=0.8, ls=":")
    top.text(first + 0.15, run["loss"].max() * 0.8, "first zero: γ freezes", color=GREY)
    bottom.step(run["epoch"], run["gamma"], where="mid", color=ORANGE)
    bottom.axvline(first, color=GREY, lw=0.8, ls=":")
    bottom.set(xlabel="epoch of the prune stage", ylabel="γ", ylim=(0, None))
    return figure


def rates() -> plt.Figure:
    """The rates of the layers over the epochs of a real run."""
    run = epochs()
    figure, axes = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    for name in (name for name in run if name.startswith("rate_")):
        axes.plot(run["epoch"], run[name], marker="o", ms=3, label=name.removeprefix("rate_"))
    axes.plot(run["epoch"], run["rate"], color="black", lw=2, label="all layers")
    axes.axhline(run["target"][0], color=GREY, lw=0.8, ls=":")
    axes.text(0, run["target"][0] - 0.05, "target", color=GREY, va="center")
    axes.set(xlabel="epoch of the prune stage", ylabel="rate", ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _box(
    axes: Axes, place: tuple[float, float], size: tuple[float, float], text: str, **style
) -> None:
    patch = FancyBboxPatch(place, *size, boxstyle="round,pad=0,rounding_size=0.08", **style)
    axes.add_patch(patch)
    middle = place[0] + size[0] / 2, place[1] + size[1] / 2
    axes.text(*middle, text, ha="center", va="center", fontsize=8.5, linespacing=1.4)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.2})


def stages() -> plt.Figure:
    """The stages of a run: what each trains and what it hands on."""
    figure, axes = plt.subplots(figsize=(7.4, 2.0), layout="constrained")
    boxes = (
        ("pretrain", "weights\nBatchNorm", BLUE),
        ("prune", "scores, rates\nBatchNorm", ORANGE),
        ("finetune", "the weights left\nBatchNorm", GREEN),
        ("evaluate", "attacks on\ntest images", GREY),
        ("report", "a page", GREY),
    )
    for place, (name, trains, color) in enumerate(boxes):
        left = place * 2.1
        _box(axes, (left, 0), (1.6, 1), trains, facecolor="white", edgecolor=color, lw=1.5)
        axes.text(left + 0.8, 1.13, name, ha="center", weight="bold", color=color)
        if place:
            _arrow(axes, (left - 0.47, 0.5), (left - 0.03, 0.5))
    notes = ("dense network", "masks on the budget", "pruned network", "results.json")
    for place, note in enumerate(notes):
        axes.text(place * 2.1 + 1.85, -0.22, note, ha="center", fontsize=8, color=GREY)
    axes.set(xlim=(-0.1, 10.1), ylim=(-0.4, 1.4))
    axes.axis("off")
    return figure


def packing() -> plt.Figure:
    """Batches of AutoAttack before and after packing, and how many images each part still sees."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(7.6, 2.1), layout="constrained", gridspec_kw={"width_ratios": [1.7, 1]}
    )
    robust = np.random.default_rng(1).random(32) < 0.45
    for image, alive in enumerate(robust):
        color = BLUE if alive else PALE
        left.add_patch(Rectangle((image % 8, 3 - image // 8), 0.9, 0.9, color=color))
    for place in range(-(-robust.sum() // 8) * 8):
        color = BLUE if place < robust.sum() else "white"
        square = (10 + place % 8, 3 - place // 8)
        left.add_patch(Rectangle(square, 0.9, 0.9, facecolor=color, edgecolor=PALE))
    left.text(4, 4.2, "four batches; pale: broken", ha="center")
    left.text(14, 4.2, "packed anew", ha="center")
    _arrow(left, (8.3, 2), (9.7, 2))
    left.set(xlim=(-0.2, 18.2), ylim=(-0.3, 4.9))
    left.set_aspect("equal")
    left.axis("off")
    after = json.loads((ROOT / "benchmarks/results/autoattack.json").read_text())["harp_jax"][
        "after"
    ]
    shares = list(after.values())
    parts = list(after)
    right.barh(parts, [1, *shares[:-1]], color=PALE)
    right.barh(parts, shares, color=BLUE)
    for place, share in enumerate(shares):
        right.text(share - 0.02, place, f"{share:.1%}", va="center", ha="right", color="white")
    right.invert_yaxis()
    right.set(xlim=(0, 1), xlabel="images: attacked (pale), still right (blue)", xticks=[])
    return figure


def live() -> plt.Figure:
    """Dead units: nothing feeds them, or nothing reads them."""
    figure, axes = plt.subplots(figsize=(5.8, 2.8), layout="constrained")
    sizes = (3, 4, 4, 2)
    edges = {(0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 1, 1), (1, 2, 2), (2, 0, 0), (2, 1, 1)}
    edges |= {(1, 0, 3), (2, 2, 1), (0, 1, 3)}
    dead = {(1, 2), (2, 2), (2, 3), (1, 3)}
    places = {
        (layer, unit): (layer * 2.0, (size - 1) / 2 - unit)
        for layer, size in enumerate(sizes)
        for unit in range(size)
    }
    for layer, start, end in sorted(edges):
        wasted = (layer, start) in dead or (layer + 1, end) in dead
        points = np.array([places[layer, start], places[layer + 1, end]]).T
        style = {"color": RED, "ls": "--"} if wasted else {"color": BLUE}
        axes.plot(*points, lw=1.4, zorder=1, **style)
    for unit, (x, y) in places.items():
        axes.scatter(
            x,
            y,
            s=130,
            zorder=2,
            color="white" if unit in dead else BLUE,
            edgecolor=RED if unit in dead else BLUE,
        )
    for x, text in zip((0, 2, 4, 6), ("image", "layer 1", "layer 2", "classes"), strict=True):
        axes.text(x, -2.3, text, ha="center")
    axes.text(1.75, -0.48, "nothing\nfeeds it", color=RED, ha="right", va="center", fontsize=8)
    axes.text(4.25, -1.5, "nobody\nreads it", color=RED, va="center", fontsize=8)
    axes.set(xlim=(-0.6, 6.6), ylim=(-2.6, 2))
    axes.axis("off")
    return figure


def floors() -> plt.Figure:
    """The levels of the package's rooms, from tests/test_imports.py."""
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text())
    (levels,) = (
        ast.literal_eval(each.value)
        for each in tree.body
        if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "LEVELS"
    )
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for height, rooms in enumerate(levels):
        width = 6.0 / len(rooms)
        for place, room in enumerate(sorted(rooms)):
            corner = (place * width + 0.05, height * 0.62)
            style = {"facecolor": PALE, "edgecolor": "white"}
            _box(axes, corner, (width - 0.1, 0.5), room, **style)
    _arrow(axes, (6.25, len(levels) * 0.62 - 0.2), (6.25, 0.1))
    axes.text(6.33, len(levels) * 0.31, "imports", rotation=270, va="center", color=GREY)
    axes.set(xlim=(0, 6.6), ylim=(-0.1, len(levels) * 0.62))
    axes.axis("off")
    return figure


FIGURES = (rate, mask, gamma, rates, stages, packing, live, floors)


def draw(folder: pathlib.Path = FOLDER) -> None:
    """Draws all figures.

    Args:
        folder: Where their SVG files are written.
    """
    with mpl.rc_context(STYLE):
        for function in FIGURES:
            figure = function()
            figure.savefig(folder / f"{function.__name__}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=pathlib.Path, help="a workdir with a complete prune stage")
    arguments = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    if arguments.run:
        take(arguments.run)
    draw()
