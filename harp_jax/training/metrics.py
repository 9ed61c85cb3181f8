"""The record of a stage: metrics.jsonl, TensorBoard event files, one log line an epoch."""

import logging
from collections.abc import Iterator
from typing import Any

import optax
from etils import epath

from harp_jax.pruning import compression
from harp_jax.pruning.budget import kept_total
from harp_jax.pruning.costs import Cost
from harp_jax.pruning.layers import kernel_paths, layer_name, leaves_by_path, rates_of
from harp_jax.training.event_file import EventFile
from harp_jax.training.state import TrainState
from harp_jax.workdir import ReportError, is_first_process, read_metrics, write_atomically
from harp_jax.workdir.checksums import signed
from harp_jax.workdir.files import METRICS, TENSORBOARD, json_text

_LOGGER = logging.getLogger(__name__)

Row = dict[str, Any]


class MetricsLog:
    """Rows of finished epochs, each written at once. Only the first process writes."""

    def __init__(self, directory: epath.PathLike, resume_at: int):
        """Opens the record.

        Args:
            directory: The stage's folder.
            resume_at: First epoch that will be added; rows from it on are dropped. A run that
                was killed between its record and its checkpoint leaves such rows.
        """
        self._path = epath.Path(directory) / METRICS
        self._rows = [row for row in read_metrics(self._path) if row["epoch"] < resume_at]
        _say_missing(self._path, self._rows, resume_at)
        self._events = None
        if is_first_process():
            self._events = EventFile(epath.Path(directory) / TENSORBOARD, resume_at)

    def add(self, row: Row) -> None:
        """Adds an epoch's row."""
        self._rows.append(row)
        _LOGGER.info("%s", _sentence(row))
        if self._events is None:
            return
        content = "".join(json_text(signed(row)) + "\n" for row in self._rows)
        write_atomically(self._path, content, make_folder=False)
        self._events.add(row["epoch"], _scalars(row))


def check(directory: epath.PathLike, epochs: int) -> None:
    """Logs what the record of a complete stage lacks, since a file of it was damaged or removed.

    Args:
        directory: The stage's folder.
        epochs: Number of epochs that were trained, >= 0.
    """
    path = epath.Path(directory) / METRICS
    try:
        _say_missing(path, read_metrics(path), epochs)
    except ReportError as error:  # one for the report, which needs it
        _LOGGER.warning("%s", error)


def _say_missing(path: epath.Path, rows: list[Row], epochs: int) -> None:
    missing = sorted(set(range(epochs)) - {row["epoch"] for row in rows})
    if missing and is_first_process():
        _LOGGER.warning(
            "%s: lacks the rows of %d of %d epochs, first that of epoch %d; networks do not depend"
            " on them",
            path,
            len(missing),
            epochs,
            missing[0],
        )


def of_pruning(state: TrainState, *, cost: Cost, target: float, minimum: float) -> Row:
    """Computes the entries of an epoch's row that only pruning has.

    Args:
        state: State at the end of the epoch.
        cost: The cost that the budget limits.
        target: Share of the dense cost that the budget allows, in (0, 1].
        minimum: Smallest rate a_min, in [0, 1).

    Returns:
        'compression' (the compression loss, its weight, the kept share of the cost, what is
        kept in its unit, whether the target is 'reached') and 'rates' by layer.
    """
    rates = rates_of(state.variables)
    loss = compression.compression_loss(rates, cost, target)
    logits = leaves_by_path(state.variables["rates"])
    entry = {
        "loss": float(loss),
        "rate": float(compression.soft_rate(rates, cost)),
        "target": target,
        "reached": bool(compression.target_reached(loss)),
        "kept": kept_total(logits, minimum, cost),
        "unit": cost.unit,
    }
    weight = optax.tree.get(state.opt_state, "gamma", filtering=_is_gamma_state)
    if weight is not None:
        entry |= {"gamma": float(weight.gamma), "frozen": bool(weight.frozen)}
    return {
        "compression": entry,
        "rates": {
            layer_name(path): float(rates[path])
            for path in kernel_paths(state.variables["params"])
            if path in rates
        },
    }


def _is_gamma_state(path: Any, value: Any) -> bool:
    del path
    return isinstance(value, compression.GammaState)


def _scalars(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float) and name != "epoch":
            yield prefix + name, float(value)


def _sentence(row: Row) -> str:
    parts = [f"loss {row['train']['loss']:.4f}"]
    if "compression" in row:
        compression = row["compression"]
        parts.append(f"L_hw {compression['loss']:.4f}")
        if "gamma" in compression:
            parts.append(f"gamma {compression['gamma']:.3g}")
        parts.append(f"{compression['kept']} {compression['unit']} kept")
    parts += [
        f"validation natural {row['validation']['natural']:.2%}",
        f"robust {row['validation']['robust']:.2%}",
        f"{row['images_per_second']:.0f} images/s, {row['data_wait']:.0%} of the time without data",
    ]
    if row["best"]:
        parts.append("best so far")
    return f"{row['stage']} epoch {row['epoch']}: " + ", ".join(parts)
