"""The record of a stage: metrics.jsonl, TensorBoard event files, one log line an epoch."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter

_LOGGER = logging.getLogger(__name__)

Row = dict[str, Any]


class MetricsLog:
    """Rows of finished epochs, on disk after each one. Only the first process writes."""

    def __init__(self, directory: epath.PathLike, resume_at: int):
        """Opens the record.

        Args:
            directory: The stage's folder.
            resume_at: First epoch that will be added; rows from it on, left by a run that was
                killed between its record and its checkpoint, are dropped.
        """
        self._path = epath.Path(directory) / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        self._rows = [row for row in read_rows(self._path) if row["epoch"] < resume_at]
        self._board = None
        if self._writes:
            folder = epath.Path(directory) / "tensorboard"
            self._board = SummaryWriter(str(folder), purge_step=resume_at)

    def add(self, row: Row) -> None:
        """Adds an epoch's row."""
        self._rows.append(row)
        _LOGGER.info("%s", _sentence(row))
        if self._board is None:
            return
        # Renamed, not appended: object stores cannot append, and a kill leaves no half line.
        text = "".join(json.dumps(row) + "\n" for row in self._rows)
        unfinished = self._path.with_suffix(".tmp")
        unfinished.write_text(text)
        unfinished.replace(self._path)
        for tag, value in _scalars(row):
            self._board.add_scalar(tag, value, row["epoch"])
        self._board.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._board is not None:
            self._board.close()


def read_rows(path: epath.PathLike) -> list[Row]:
    """The rows of a metrics.jsonl, or none if it is not there."""
    path = epath.Path(path)
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _scalars(row: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float) and name != "epoch":
            yield prefix + name, float(value)


def _sentence(row: Row) -> str:
    parts = [
        f"loss {row['train']['loss']:.4f}",
        f"validation natural {row['validation']['natural']:.2%}",
        f"robust {row['validation']['robust']:.2%}",
        f"{row['images_per_second']:.0f} images/s",
    ]
    if "compression" in row:
        compression = row["compression"]
        parts.insert(1, f"L_hw {compression['loss']:.4f} gamma {compression['gamma']:.3g}")
        parts.insert(2, f"{compression['kept']} weights kept")
    if row["best"]:
        parts.append("best so far")
    return f"{row['stage']} epoch {row['epoch']}: " + ", ".join(parts)
