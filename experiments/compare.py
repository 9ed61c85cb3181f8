"""Methods side by side: every cell of method x sparsity x seed through the command line.

python -m experiments.compare --matrix=experiments/matrices/fashion.py --runs=runs/compare

The dense network of a seed is trained once and shared. Rows go to experiments/results/MATRIX.csv,
one after each cell, and a cell with a row there is done: run the same command again after a stop.
Runs that were stopped in the middle go on where they were, as every run does. Several of the same
command side by side share the cells among them.
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
from harp_jax import checkpoint, models
from harp_jax.evaluation import ROBUST
from harp_jax.pruning import channels
from harp_jax.pruning.layers import bake
from harp_jax.pruning.live import live_weights

RESULTS = pathlib.Path(__file__).parent / "results"
# Columns of the epochs' table, beside those that name the cell.
FEW = 250
EPOCH = ("stage", "epoch", "seconds", "natural", "robust")

Line = dict[str, Any]


def command(cell: Cell, matrix: Matrix, runs: pathlib.Path) -> list[str]:
    """The call of the command line that runs a cell."""
    fields = {**matrix.fields, **cell.fields, "seed": cell.seed}
    if cell.method != DENSE:
        fields["prune.source"] = runs / f"{DENSE}_1_{cell.seed}" / "pretrain"
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    program = [sys.executable, "-m", "harp_jax.main", f"--config={matrix.base}"]
    return [*program, f"--workdir={runs / cell.name}", *settings]


def result(cell: Cell, workdir: pathlib.Path) -> Line:
    """A row of the table: the last stage's network on test data."""
    found = json.loads((workdir / "results.json").read_text())
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
        **_of_the_first(workdir / "robustness" / f"{row['stage']}-autoattack.npz"),
        "validation_robust": round(best, 4),
        "images": row["images"],
        "training_seconds": round(sum(line["seconds"] for line in lines)),
        "kept_per_layer": " ".join(str(layer["kept"]) for layer in row["layers"]),
        "warnings": len(row["warnings"]),
    }


def _of_the_first(path: pathlib.Path) -> Line:
    """AutoAttack's accuracy on as many images as published numbers are of."""
    if not path.exists():
        return {}
    with np.load(path) as outcome:
        robust = outcome["broken_by"][:FEW] == ROBUST
    return {f"autoattack_first_{FEW}": round(float(robust.mean()), 4)}


def live(stage: pathlib.Path) -> int:
    """How many of the weights of a stage's network join the images with the classes."""
    variables = checkpoint.load(stage)
    metadata = variables.pop("metadata")
    model = models.create(metadata["model"], metadata["num_classes"])
    groups = channels.trace(model, metadata["image_shape"]).groups
    return sum(live_weights(jax.jit(bake)(variables)["params"], groups).values())


def epochs(cell: Cell, workdir: pathlib.Path) -> list[Line]:
    """A line for every epoch of a cell's stages: its seconds and accuracies on validation data."""
    lines = []
    for path in sorted(workdir.glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime):
        for row in map(json.loads, path.read_text().splitlines()):
            values = {**row, **row["validation"]}
            lines.append({**named(cell), **{name: values[name] for name in EPOCH}})
    return lines


def named(cell: Cell) -> Line:
    """The columns that name a cell."""
    return dict(zip(("method", "target", "seed"), cell.key, strict=True))


def read(path: pathlib.Path) -> list[Line]:
    """The rows of a table, none if it is not there yet."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def write(path: pathlib.Path, rows: list[Line]) -> None:
    """Writes a table; a stop leaves the old one or the new one."""
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
    """The matrix that a file describes."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: --matrix={path}: allowed are Python files")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MATRIX


def main() -> None:
    """Runs all cells that have no row yet."""
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
    """Runs a cell and adds its rows, unless the table has them."""
    table, workdir = RESULTS / f"{name}_matrix.csv", runs / cell.name
    done = cell.key in {(row["method"], row["target"], row["seed"]) for row in read(table)}
    trained = cell.method != DENSE or (workdir / "pretrain" / "result").exists()
    if done and trained:
        return
    if done:  # only the network is missing
        cell = dataclasses.replace(cell, fields={"stages": ("pretrain",)})
    print(label, flush=True)
    subprocess.run(command(cell, matrix, runs), check=True)
    if not done:
        with claimed(runs / f"{table.name}.lock", wait=True):
            add(RESULTS / f"{name}_epochs.csv", epochs(cell, workdir))
            add(table, [result(cell, workdir)])


@contextlib.contextmanager
def claimed(path: pathlib.Path, wait: bool) -> Iterator[bool]:
    """Holds a lock among processes of this machine; yields whether it is ours."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


if __name__ == "__main__":
    main()
