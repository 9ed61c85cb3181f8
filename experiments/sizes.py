"""Accuracy over the size of the file, of a matrix that `experiments.compare` ran.

python -m experiments.sizes experiments/results/fashion_matrix.csv

Reads NAME_matrix.csv; writes NAME_sizes.csv (means over the seeds) and NAME_sizes.png. The matrix
keeps no networks, only how many weights each layer kept. So each size is that of a real sparse file
of a network with exactly so many weights in each layer, with random values and at random places (of
units that a kept weight reads: a sparse file leaves out the others, and learned masks have few).
That of the dense network is its dense file.
"""

import argparse
import operator
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.figures import ACCURACIES, ATTACKED, checked, colours, groups, in_order, summary
from experiments.matrix import DENSE
from experiments.tables import Line, write
from harp_jax import models
from harp_jax.export import Trained, dense_file, sparse_file
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves
from harp_jax.report import plots
from harp_jax.report.sizes import size_axis

SHOWN = (DENSE, "HARP", "HARP, live", "HYDRA", "HYDRA, LAMP", "magnitude, global", "random")
CLASSES = 10


class Files:
    """Sizes of files of a network whose layers follow each other, by the weights they keep.

    Attributes:
        weights: Number of weights of each layer, in the order of the calls.
    """

    def __init__(self, network: str, image_shape: Sequence[int]):
        """Draws random values for all arrays of the network, which compress as trained ones do."""
        self._model = models.create(network, CLASSES)
        image = jnp.zeros((1, *image_shape))
        shapes = jax.eval_shape(self._model.init, jax.random.key(0), image)
        self._generator = np.random.default_rng(0)
        self._leaves = {
            path: self._generator.standard_normal(leaf.shape).astype(np.float32)
            for path, leaf in leaves_by_path(shapes).items()
        }
        self._kernels = [("params", *each.path) for each in trace_layers(self._model, image_shape)]
        self.weights = [self._leaves[path].size for path in self._kernels]
        self._metadata: dict[str, Any] = {
            "model": network,
            "num_classes": CLASSES,
            "image_shape": list(image_shape),
            "normalization": None,
            "compute_dtype": "float32",
        }

    def dense(self) -> int:
        """Returns the bytes of the dense file."""
        return len(dense_file.encode(self._trained(self._leaves)))

    def sparse(self, kept: Sequence[int]) -> int:
        """Returns the bytes of a sparse file.

        Args:
            kept: Number of kept weights of each layer, in the order of the calls.
        """
        leaves, read = dict(self._leaves), np.ones(CLASSES, bool)
        for place in reversed(range(len(self._kernels))):
            path = self._kernels[place]
            mask = self._mask(path, kept[place], read)
            leaves[path] = leaves[path] * mask
            if place > 0:
                units = self._leaves[self._kernels[place - 1]].shape[-1]  # of the layer before
                read = np.any(mask.reshape(-1, units, mask.shape[-1]), axis=(0, 2))
        return len(sparse_file.encode(self._trained(leaves)))

    def _mask(self, path: Any, count: int, read: np.ndarray) -> np.ndarray:
        """Draws places to keep, those of units that are read before others."""
        shape = self._leaves[path].shape
        order = self._generator.random(shape) + ~read
        mask = np.zeros(order.size, bool)
        mask[np.argsort(order, axis=None)[:count]] = True
        return mask.reshape(shape)

    def _trained(self, leaves: dict[Any, np.ndarray]) -> Trained:
        return Trained(self._model, tree_of_leaves(leaves), self._metadata)


def with_sizes(lines: Sequence[Line], files: Files) -> list[Line]:
    """Returns the rows of `figures.summary` with the mean size of their files, 'bytes'."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for line in lines:
        kept = [int(count) for count in line["kept_per_layer"].split()]
        size = files.dense() if line["method"] == DENSE else files.sparse(kept)
        sizes.setdefault((line["target"], line["method"]), []).append(size)
    columns = ("target", "method", "seeds", "kept", "natural", "autoattack")
    return [
        {
            **{name: row[name] for name in columns},
            "bytes": round(float(np.mean(sizes[row["target"], row["method"]]))),
        }
        for row in summary(lines)
    ]


def accuracy(rows: Sequence[Line], shades: dict[str, Any]) -> Figure:
    """Draws accuracy over bytes, a line a method: natural on the left, AutoAttack on the right.

    Args:
        rows: From `with_sizes`.
        shades: A colour for every method.
    """
    figure = Figure(figsize=(plots.WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(panels, ("natural", "autoattack"), strict=True):
        for (method,), points in groups([row for row in rows if row["method"] in SHOWN], "method"):
            places, values = [row["bytes"] for row in points], [row[name] for row in points]
            if method == DENSE:
                line = {"color": shades[method], "linewidth": 0.8, "linestyle": (0, (4, 2))}
                axes.axhline(values[0], **line)
                axes.plot(places, values, "s", color=shades[method], markersize=5, label=method)
            else:
                style = {"color": shades[method], "linewidth": 1.5, "markersize": 3.5}
                axes.plot(places, values, marker="o", label=method, **style)
        axes.set_xscale("log")
        axes.yaxis.set_major_formatter(plots.percent_ticks())
        size_axis(axes)
        plots.calm(axes)
    panels[0].set_title("natural accuracy", **plots.TITLE)
    panels[1].set_title("accuracy under AutoAttack", **plots.TITLE)
    style = {"frameon": False, "fontsize": 7.5, "ncols": len(SHOWN), "labelcolor": plots.INK}
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", **style)
    return figure


def _check_network(flags: argparse.Namespace, line: Line, weights: Sequence[int]) -> None:
    """Raises a SystemExit in one line if a row is not of the network."""
    kept = [int(count) for count in line["kept_per_layer"].split()]
    fits = len(kept) == len(weights) and all(map(operator.le, kept, weights))
    if not fits or (line["method"] == DENSE and kept != list(weights)):
        shape = " ".join(map(str, flags.image_shape))
        raise SystemExit(
            f"error: {flags.table}: kept_per_layer={line['kept_per_layer']!r} of {line['method']};"
            f" --network={flags.network} --image-shape {shape} has {list(weights)} weights"
        )


def main() -> None:
    """Writes the table of sizes and the figure into the matrix' folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=pathlib.Path, help="NAME_matrix.csv")
    parser.add_argument(
        "--network", default="cnn", choices=models.MODELS, help="of the runs (%(default)s)"
    )
    parser.add_argument(
        "--image-shape", type=int, nargs=3, default=(28, 28, 1), help="height, width, channels"
    )
    flags = parser.parse_args()
    name = flags.table.stem.removesuffix("_matrix")
    lines = in_order(checked(flags.table, "kept", "kept_per_layer", *ACCURACIES[:2], ATTACKED))
    files = Files(flags.network, flags.image_shape)
    for line in lines:
        _check_network(flags, line, files.weights)
    rows = with_sizes(lines, files)
    write(flags.table.with_name(f"{name}_sizes.csv"), rows)
    figure = plots.to_png_bytes(accuracy(rows, colours(lines)))
    flags.table.with_name(f"{name}_sizes.png").write_bytes(figure)


if __name__ == "__main__":
    main()
