"""Comparing methods: runs every combination of method, sparsity and seed by the command line.

python -m experiments.compare --matrix=experiments/matrices/fashion.py --runs=runs/compare

The dense network of a seed is trained once and shared. After each combination (a cell) one row is
added to experiments/results/NAME_matrix.csv. Cells with a row are skipped, so repeat the command
after an interruption; an interrupted run resumes. `--jobs=N` runs N cells side by side, each on a
core of its own; several processes with the same command share the cells, too. `--hours=H` saves and
stops when that time is over.
"""

import argparse
import csv
import dataclasses
import importlib.util
import json
import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.matrix import Cell, Matrix, cells
from experiments.workers import Clock, StoppedError, claimed, execute, side_by_side
from harp_jax import checkpoint
from harp_jax.evaluation import ROBUST
from harp_jax.export import trained
from harp_jax.pruning import channels
from harp_jax.pruning.layers import bake
from harp_jax.pruning.live import live_weights
from harp_jax.workdir import files

RESULTS = pathlib.Path(__file__).parent / "results"
FEW = 250  # test images in the published results
# Columns of the table of epochs, besides those that name the cell.
EPOCH = ("stage", "epoch", "seconds", "natural", "robust")

Line = dict[str, Any]


def command(cell: Cell, matrix: Matrix, runs: pathlib.Path) -> list[str]:
    """Returns the command that runs a cell."""
    fields = {**matrix.fields, **cell.fields, "seed": cell.seed}
    source = cell.source(matrix)
    if source is not None:
        stage = stage_for_others(source, matrix)
        after = {"pretrain": "prune", "prune": "finetune"}[stage]
        fields[f"{after}.source"] = runs / source.name / stage
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    program = [sys.executable, "-m", "harp_jax.main", f"--config={matrix.base}"]
    return [*program, f"--workdir={runs / cell.name}", *settings]


def stage_for_others(cell: Cell, matrix: Matrix) -> str:
    """Returns the stage of a cell whose network others start from."""
    return "pretrain" if cell.source(matrix) is None else "prune"


def result(cell: Cell, workdir: pathlib.Path) -> Line:
    """Returns a cell's row of the table: the last stage's network on test data."""
    found = json.loads((workdir / files.RESULTS).read_text())
    row, lines = found["rows"][-1], epochs(cell, workdir)
    after = [of["after"] for of in row.get("autoattack", {}).values()]
    best = max(float(line["robust"]) for line in lines if line["stage"] == row["stage"])
    return {
        **named(cell),
        "kept": row["parameters"],
        "total": row["total"],
        "live": live(workdir / row["stage"]),
        "flops": round(row["flops"] / row["total_flops"], 4),
        "natural": round(row["natural"], 4),
        **{name: round(accuracy, 4) for name, accuracy in row["robust"].items()},
        **{f"after {part}": round(share, 4) for of in after for part, share in of.items()},
        **_of_the_first(broken_by(workdir, row["stage"])),
        "validation_robust": round(best, 4),
        "images": row["images"],
        "training_seconds": round(sum(line["seconds"] for line in lines)),
        "kept_per_layer": " ".join(str(layer["kept"]) for layer in row["layers"]),
        "warnings": len(row["warnings"]),
    }


def _of_the_first(outcome: np.ndarray | None) -> Line:
    """Returns AutoAttack's accuracy on the first `FEW` images, as in published results."""
    if outcome is None:
        return {}
    robust = outcome[:FEW] == ROBUST
    return {f"autoattack_first_{FEW}": round(float(robust.mean()), 4)}


def broken_by(workdir: pathlib.Path, stage: str) -> np.ndarray | None:
    """Reads what of AutoAttack broke each test image; None unless the attack is complete.

    Args:
        workdir: A run.
        stage: One of its stages.
    """
    results = workdir / files.RESULTS
    rows = json.loads(results.read_text())["rows"] if results.exists() else []
    if not any(row["stage"] == stage and "autoattack" in row["robust"] for row in rows):
        return None
    with np.load(workdir / files.ROBUSTNESS / f"{stage}-autoattack.npz") as outcome:
        return outcome["broken_by"]


def network(stage: pathlib.Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Loads a stage's network: the model, its variables and its metadata."""
    variables = checkpoint.load(stage)
    metadata = variables.pop("metadata")
    return trained.create(metadata), variables, metadata


def live(stage: pathlib.Path) -> int:
    """Counts the weights of a stage's network on a path from the images to the classes."""
    model, variables, metadata = network(stage)
    groups = channels.trace(model, metadata["image_shape"]).groups
    return sum(live_weights(jax.jit(bake)(variables)["params"], groups).values())


def epochs(cell: Cell, workdir: pathlib.Path) -> list[Line]:
    """Returns one row per epoch of a cell's stages: seconds and validation accuracies."""
    lines = []
    for path in sorted(workdir.glob(f"*/{files.METRICS}"), key=lambda path: path.stat().st_mtime):
        for row in map(json.loads, path.read_text().splitlines()):
            values = {**row, **row["validation"]}
            lines.append({**named(cell), **{name: values[name] for name in EPOCH}})
    return lines


def named(cell: Cell) -> Line:
    """Returns the columns that name a cell."""
    return dict(zip(("method", "target", "seed"), cell.key, strict=True))


def read(path: pathlib.Path) -> list[Line]:
    """Reads the rows of a table; a missing file has none."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def write(path: pathlib.Path, rows: list[Line]) -> None:
    """Writes a table; an interruption leaves either the old or the new file."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(path)


def add(path: pathlib.Path, lines: list[Line]) -> None:
    """Adds rows to a table."""
    write(path, read(path) + lines)


def load(path: pathlib.Path) -> Matrix:
    """Loads the matrix from a Python file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: --matrix={path}: allowed are Python files")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MATRIX


def main() -> None:
    """Runs all cells without a row."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--matrix", type=pathlib.Path, required=True)
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the workdirs")
    parser.add_argument("--only", default="", help="part of the names of the cells to run")
    parser.add_argument("--jobs", type=int, default=1, help="cells side by side, a core each")
    parser.add_argument("--hours", type=float, help="time after which to save and stop")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of all cells, as data.name=npz:FILE",
    )
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs={arguments.jobs}: allowed are whole numbers >= 1")
    if arguments.hours is not None and not arguments.hours > 0:
        parser.error(f"--hours={arguments.hours}: allowed are numbers > 0")
    if wrong := [each for each in arguments.set if "=" not in each]:
        parser.error(f"--set={wrong[0]}: allowed is FIELD=VALUE")
    matrix = load(arguments.matrix)
    fields = dict(each.split("=", 1) for each in arguments.set)
    matrix = dataclasses.replace(matrix, fields={**matrix.fields, **fields})
    arguments.runs.mkdir(parents=True, exist_ok=True)
    clock = Clock(arguments.hours)
    work = Work(matrix, arguments.matrix.stem, arguments.runs, clock)
    try:
        side_by_side(lambda: work.on(arguments.only), arguments.jobs, clock)
    except StoppedError:
        print("stopped, the time is over; all is saved, the same command goes on", flush=True)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        matrix: The matrix.
        name: Name of its tables.
        runs: Folder of the workdirs.
        clock: The time.
    """

    matrix: Matrix
    name: str
    runs: pathlib.Path
    clock: Clock

    def on(self, only: str = "") -> None:
        """Runs the cells without a row that nobody else runs.

        Those that others start from come first, so that several begin side by side. What starts
        from one that another process runs waits for it.

        Args:
            only: Part of the names of the cells to run; those that they start from run, too.

        Raises:
            StoppedError: If the time is over.
        """
        everything = list(enumerate(cells(self.matrix), start=1))
        for number, cell in sorted(everything, key=lambda each: each[1].depth(self.matrix)):
            if only not in cell.name or self._has_row(cell):
                continue
            if (source := cell.source(self.matrix)) is not None:
                self._provide(source)
            with claimed(self._lock(cell), wait=False) as is_ours:
                if is_ours and not self._has_row(cell):
                    self._run(cell, f"{number} of {len(everything)}: {cell.name}")

    def _provide(self, cell: Cell) -> None:
        """Runs a cell that another one starts from, unless the network is there."""
        with claimed(self._lock(cell), wait=True):
            stage = stage_for_others(cell, self.matrix)
            if (self.runs / cell.name / stage / files.RESULT).exists():
                return
            if (source := cell.source(self.matrix)) is not None:
                self._provide(source)
            if self._has_row(cell):  # only the network is missing
                cell = dataclasses.replace(cell, fields={**cell.fields, "stages": (stage,)})
            self._run(cell, cell.name)

    def _run(self, cell: Cell, label: str) -> None:
        """Runs a cell and adds its rows, unless the table has them already."""
        self.clock.check()
        print(label, flush=True)
        execute(command(cell, self.matrix, self.runs), self.clock)
        table, workdir = self._table, self.runs / cell.name
        with claimed(self.runs / f"{table.name}.lock", wait=True):
            if not self._has_row(cell):
                add(RESULTS / f"{self.name}_epochs.csv", epochs(cell, workdir))
                add(table, [result(cell, workdir)])

    @property
    def _table(self) -> pathlib.Path:
        return RESULTS / f"{self.name}_matrix.csv"

    def _has_row(self, cell: Cell) -> bool:
        done = {(row["method"], row["target"], row["seed"]) for row in read(self._table)}
        return cell.key in done

    def _lock(self, cell: Cell) -> pathlib.Path:
        return self.runs / f"{cell.name}.lock"


if __name__ == "__main__":
    main()
