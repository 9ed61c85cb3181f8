"""Figures of learned rates and scores, from the checkpoints of finished runs.

python -m experiments.analysis runs/mnist runs/fashion --out=analysis

Writes strategies.png (fraction of the weights kept in each layer, one line per run) and, for each
run, NAME_rates.png (rates over the epochs) and NAME_scores.png (histograms of |scores| of kept and
removed weights, per layer).
"""

import argparse
import pathlib
from typing import Any

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from harp_jax import checkpoint
from harp_jax.export import trained
from harp_jax.pruning import channels
from harp_jax.pruning.layers import layer_name, leaves_by_path
from harp_jax.pruning.sparsity import LayerSparsity, layer_sparsity
from harp_jax.report import plots
from harp_jax.workdir.files import METRICS
from harp_jax.workdir.records import read_metrics

BINS = 60
COLUMNS = 4


def layers(variables: dict[str, Any]) -> list[LayerSparsity]:
    """Counts the kept weights of each layer, without weights that pruned channels disconnect."""
    if any(leaf.ndim > 1 for leaf in jax.tree.leaves(variables["scores"])):
        return layer_sparsity(variables)  # one score per weight
    metadata = variables["metadata"]
    model = trained.create(metadata)
    return layer_sparsity(variables, channels.trace(model, metadata["image_shape"]))


def strategies(workdirs: list[epath.Path]) -> Figure:
    """Draws the fraction of the weights kept in each layer, one line per run."""
    figure = Figure(figsize=(plots.WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    names: list[str] = []
    for workdir in workdirs:
        rows = layers(checkpoint.load(workdir / "prune"))
        names = max(names, [row.layer for row in rows], key=len)
        shares = [row.kept / row.parameters for row in rows]
        axes.plot(range(len(rows)), shares, marker="o", markersize=3, label=workdir.name)
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.yaxis.set_major_formatter(plots.percent_ticks())
    axes.set_title("kept share of each layer's weights", **plots.TITLE)
    plots.calm(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=7.5)
    return figure


def rates(workdir: epath.Path) -> Figure | None:
    """Draws the rates over the epochs of pruning; returns None if the run recorded none."""
    rows = [row for row in read_metrics(workdir / "prune" / METRICS) if "rates" in row]
    if not rows:
        return None
    series = {layer: np.array([row["rates"][layer] for row in rows]) for layer in rows[0]["rates"]}
    epochs = np.array([row["epoch"] for row in rows])
    compression = rows[0]["compression"]
    target = compression["target"] if compression["unit"] == "weights" else None  # a rate
    return plots.layer_rates(epochs, series, target)


def scores(workdir: epath.Path) -> Figure:
    """Draws histograms of |scores|, one panel per layer: removed below, kept above."""
    variables = checkpoint.load(workdir / "prune")
    kept = {row.layer: row.kept / row.parameters for row in layer_sparsity(variables)}
    leaves = leaves_by_path(variables["scores"])
    lines = -(-len(leaves) // COLUMNS)
    figure = Figure(figsize=(plots.WIDTH, 0.4 + 1.7 * lines), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, squeeze=False).ravel()
    for axes, (path, leaf) in zip(panels, leaves.items(), strict=False):
        magnitudes = np.sort(np.abs(leaf).ravel())
        cut = len(magnitudes) - round(kept[layer_name(path)] * len(magnitudes))
        bins = np.linspace(0, magnitudes[-1], BINS)
        colours = {"stacked": True, "color": [plots.TRACK, plots.NATURAL]}
        axes.hist([magnitudes[:cut], magnitudes[cut:]], bins, label=["removed", "kept"], **colours)
        axes.set_yscale("log")
        axes.set_title(layer_name(path), **plots.TITLE)
        plots.calm(axes)
    for axes in panels[len(leaves) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", frameon=False, fontsize=7.5, ncols=2)
    return figure


def main() -> None:
    """Draws and writes all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", type=epath.Path, help="folder of a run")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    for workdir in arguments.workdirs:
        if not checkpoint.is_complete(workdir / "prune"):
            parser.error(f"{workdir}: allowed are workdirs with a complete prune stage")
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = {"strategies": strategies(arguments.workdirs)}
    for workdir in arguments.workdirs:
        figures |= {f"{workdir.name}_scores": scores(workdir)}
        if (trajectories := rates(workdir)) is not None:
            figures[f"{workdir.name}_rates"] = trajectories
    for name, figure in figures.items():
        (arguments.out / f"{name}.png").write_bytes(plots.to_png_bytes(figure))


if __name__ == "__main__":
    main()
