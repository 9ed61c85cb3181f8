"""Comparing methods: runs every combination of method, sparsity and seed by the command line.

python -m experiments.compare --matrix=experiments/matrices/fashion.py --runs=runs/compare

The dense network of a seed is trained once and shared. After each combination (a cell) one row is
added to experiments/results/NAME_matrix.csv. Cells with a row are skipped, so repeat the command
after an interruption; an interrupted run resumes. Several processes with the same command share
the cells.
"""

import argparse
import contextlib
import csv
import dataclasses
import fcntl
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.matrix import DENSE, Cell, Matrix, cells
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
    if cell.method != DENSE:
        fields["prune.source"] = runs / f"{DENSE}_1_{cell.seed}" / "pretrain"
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    program = [sys.executable, "-m", "harp_jax.main", f"--config={matrix.base}"]
    return [*program, f"--workdir={runs / cell.name}", *settings]


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
        "natural": round(row["natural"], 4),
        **{name: round(accuracy, 4) for name, accuracy in row["robust"].items()},
        **{f"after {part}": round(share, 4) for of in after for part, share in of.items()},
        **_of_the_first(workdir / files.ROBUSTNESS / f"{row['stage']}-autoattack.npz"),
        "validation_robust": round(best, 4),
        "images": row["images"],
        "training_seconds": round(sum(line["seconds"] for line in lines)),
        "kept_per_layer": " ".join(str(layer["kept"]) for layer in row["layers"]),
        "warnings": len(row["warnings"]),
    }


def _of_the_first(path: pathlib.Path) -> Line:
    """Returns AutoAttack's accuracy on the first `FEW` images, as in published results."""
    if not path.exists():
        return {}
    with np.load(path) as outcome:
        robust = outcome["broken_by"][:FEW] == ROBUST
    return {f"autoattack_first_{FEW}": round(float(robust.mean()), 4)}


def live(stage: pathlib.Path) -> int:
    """Counts the weights of a stage's network on a path from the images to the classes."""
    variables = checkpoint.load(stage)
    metadata = variables.pop("metadata")
    model = trained.create(metadata)
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
    arguments = parser.parse_args()
    matrix = load(arguments.matrix)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    everything = list(cells(matrix))
    for number, cell in enumerate(everything, start=1):
        if cell.method != DENSE and arguments.only not in cell.name:
            continue
        with claimed(arguments.runs / f"{cell.name}.lock", wait=cell.method == DENSE) as is_ours:
            if is_ours:
                label = f"{number} of {len(everything)}: {cell.name}"
                run(cell, matrix, arguments.matrix.stem, arguments.runs, label)


def run(cell: Cell, matrix: Matrix, name: str, runs: pathlib.Path, label: str) -> None:
    """Runs a cell and adds its rows, unless the table has them already."""
    table, workdir = RESULTS / f"{name}_matrix.csv", runs / cell.name
    done = cell.key in {(row["method"], row["target"], row["seed"]) for row in read(table)}
    trained = cell.method != DENSE or (workdir / "pretrain" / files.RESULT).exists()
    if done and trained:
        return
    if done:  # only the dense network is missing
        cell = dataclasses.replace(cell, fields={"stages": ("pretrain",)})
    print(label, flush=True)
    subprocess.run(command(cell, matrix, runs), check=True)
    if not done:
        with claimed(runs / f"{table.name}.lock", wait=True):
            add(RESULTS / f"{name}_epochs.csv", epochs(cell, workdir))
            add(table, [result(cell, workdir)])


@contextlib.contextmanager
def claimed(path: pathlib.Path, wait: bool) -> Iterator[bool]:
    """Locks a file among the processes of this machine; yields whether that succeeded."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


if __name__ == "__main__":
    main()
