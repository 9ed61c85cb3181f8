"""Shows what pruning gave: a table of size and speed, and a figure of accuracy over bytes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from harp_jax.report import plots, words
from harp_jax.workdir import files

Record = Mapping[str, Any]
_NATURAL = "natural"
_ONE_PLACE = 2.0  # factor in bytes up to which labels are set apart from each other


@dataclasses.dataclass(frozen=True)
class SizedNetwork:
    """A network's file and its accuracies.

    Attributes:
        name: Name of the network.
        bytes: Size of its file.
        accuracies: Accuracy in [0, 1] by name: 'natural', or an attack.
    """

    name: str
    bytes: int
    accuracies: Mapping[str, float]


def of_rows(sizes: Record | None, rows: Sequence[Record]) -> Record | None:
    """Returns the content of network.json if it is of the networks of these rows, else None."""
    if sizes is None:
        return None
    digests = {row["stage"]: row.get("network_digest") for row in rows if row["sparsity"] > 0}
    fits = sizes["digests"] == digests == {stage: digests.get(stage) for stage in sizes["bytes"]}
    return sizes if fits and sizes["stage"] in digests else None


def bytes_of(sizes: Record | None, row: Record) -> int | None:
    """Returns the bytes of the file of a row's network; None if they are not known."""
    if sizes is None:
        return None
    return sizes["dense_bytes"] if row["sparsity"] == 0 else sizes["bytes"].get(row["stage"])


def table(sizes: Record | None, rows: Sequence[Record]) -> dict[str, Any] | None:
    """Builds the table of size and speed.

    Args:
        sizes: Content of network.json; None if there is none.
        rows: Rows of results.json.

    Returns:
        Lines of (quantity, dense, pruned, factor) in words, the pruned network's stage, the device,
        and the command that makes the file; None without sizes.
    """
    if sizes is None:
        return None
    (row,) = (each for each in rows if each["stage"] == sizes["stage"])
    amounts = [
        ("bytes of the file", sizes["dense_bytes"], sizes["bytes"][sizes["stage"]]),
        ("weights", row["total"], row["parameters"]),
    ]
    if "flops" in row:
        amounts.append(("FLOPs an image", row["total_flops"], row["flops"]))
    lines = [(name, f"{a:,}", f"{b:,}", _factor(a, b)) for name, a, b in amounts]
    for each in sizes["milliseconds"]:
        dense, pruned = each["dense"], each["pruned"]
        batch = "one image" if each["images"] == 1 else f"{each['images']} images at once"
        words_of = f"ms an image, {batch}", f"{dense:.3g}", f"{pruned:.3g}"
        lines.append((*words_of, _factor(dense, pruned)))
    own = sizes["model"] if ":" in sizes["model"] else ""
    return {
        "lines": lines,
        "stage": row["stage"],
        "device": sizes["device"],
        "command": f"python -m harp_jax.export . --format=sparse --stage={row['stage']}"
        f" --out={files.NETWORK}" + (f" --model={own}" if own else ""),
        "load": f'harp_jax.load("{files.NETWORK}"' + (f', model="{own}")' if own else ")"),
    }


def _factor(dense: int | float, pruned: int | float) -> str:
    return f"{dense / pruned:.3g}" if pruned else ""


def networks(sizes: Record | None, rows: Sequence[Record]) -> list[SizedNetwork]:
    """Lists the dense and the pruned networks, under the attack worst for the last of them.

    Args:
        sizes: Content of network.json; None if there is none.
        rows: Rows of results.json.

    Returns:
        The networks whose size is known, with their natural accuracy and that under one attack
        that all of them were measured under, if there is one.
    """
    if sizes is None:
        return []
    known = [row for row in rows if row["sparsity"] == 0 or row["stage"] in sizes["bytes"]]
    last = known[-1]["robust"]
    shared = [name for name in last if all(name in row["robust"] for row in known)]
    worst = min(shared, key=last.__getitem__) if shared else None
    return [
        SizedNetwork(
            name=words.stage(row["stage"]).split()[0],
            bytes=sizes["bytes"].get(row["stage"], sizes["dense_bytes"]),
            accuracies={
                _NATURAL: row["natural"],
                **({worst: row["robust"][worst]} if worst else {}),
            },
        )
        for row in known
    ]


def accuracy_over_bytes(found: Sequence[SizedNetwork]) -> Figure:
    """Draws the accuracies of networks over the sizes of their files.

    Args:
        found: The networks, with the same kinds of accuracy; at least one.

    Returns:
        A figure with one axes, logarithmic in bytes, each point labelled.
    """
    figure = Figure(figsize=(plots.WIDTH, 3.0), layout="constrained")
    axes = figure.subplots()
    for kind in found[0].accuracies:
        colour = plots.NATURAL if kind == _NATURAL else plots.ROBUST
        sizes, values = [each.bytes for each in found], [each.accuracies[kind] for each in found]
        axes.plot(sizes, values, "o", color=colour, label=kind, markersize=6, zorder=3)
    axes.set_xscale("log")
    low, high = min(each.bytes for each in found), max(each.bytes for each in found)
    width = np.log10(high / low) + 0.3
    axes.set_xlim(low / 10 ** (0.06 * width), high * 10 ** (0.22 * width))
    axes.margins(y=0.18)
    axes.yaxis.set_major_formatter(plots.percent_ticks())
    size_axis(axes)
    plots.calm(axes)
    _label(axes, found)
    style = {"ncols": 2, "frameon": False, "fontsize": 7.5, "labelcolor": plots.INK}
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", **style)
    return figure


def size_axis(axes: Axes) -> None:
    """Labels a logarithmic x axis of bytes: 1, 2 and 5 of each decade, in B, kB and MB."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _bytes(value)))
    axes.minorticks_off()
    axes.set_xlabel("size of the file", **plots.WRITING)


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g} B"


def _label(axes: Axes, found: Sequence[SizedNetwork]) -> None:
    """Writes each point's network and accuracy to its right; those of one place are set apart."""
    places: list[list[SizedNetwork]] = []
    for each in sorted(found, key=lambda network: network.bytes):
        if places and each.bytes <= _ONE_PLACE * places[-1][-1].bytes:
            places[-1].append(each)
        else:
            places.append([each])
    low, high = axes.get_ylim()
    for together in places:
        points = [(each, value) for each in together for value in each.accuracies.values()]
        heights = np.array([(value - low) / (high - low) for _, value in points])
        right = max(each.bytes for each in together)
        for (each, value), height in zip(points, plots.spread(heights, gap=0.075), strict=True):
            leader = {"arrowstyle": "-", "color": plots.MUTED, "linewidth": 0.6, "relpos": (0, 0.5)}
            axes.annotate(
                f"{each.name} {100 * value:.1f} %",
                (each.bytes, value),
                xytext=(_right_of(axes, right), float(height)),
                textcoords="axes fraction",
                va="center",
                arrowprops=leader,
                **plots.WRITING,
            )


def _right_of(axes: Axes, size: int) -> float:
    """Returns the place of labels of points at this size, as a fraction of the axes' width."""
    low, high = axes.get_xlim()
    return float(np.log(size / low) / np.log(high / low)) + 0.03
