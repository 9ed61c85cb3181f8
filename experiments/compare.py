"""Comparing methods: runs every combination of method, sparsity and seed by the command line.

python -m experiments.compare --matrix=experiments/matrices/fashion.py --runs=runs/compare

The dense network of a seed is trained once and shared. After each combination (a cell) one row is
added to experiments/results/NAME_matrix.csv, its epochs to NAME_epochs.csv, and AutoAttack's
outcome on every image to NAME_outcomes.csv. NAME_settings.json holds the fields of all cells: rows
of others are refused. Cells with a row are skipped, so repeat the command after an interruption; an
interrupted run resumes. `--jobs=N` runs N cells side by side, each on a core of its own, in the
order of the cores; several processes with the same command share the cells, too. `--hours=H` saves
and stops when that time is over.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import traceback

import jax
import numpy as np

from experiments import outcomes, settings
from experiments.finished import broken_by, network
from experiments.matrix import Cell, Matrix, cells
from experiments.tables import KEY, Line, add, read
from experiments.workers import Clock, StoppedError, claimed, execute, side_by_side
from harp_jax.evaluation import ROBUST
from harp_jax.pruning import channels
from harp_jax.pruning.layers import bake
from harp_jax.pruning.live import live_weights
from harp_jax.workdir import files

RESULTS = pathlib.Path(__file__).parent / "results"
FEW = 250  # test images in the published results
# Columns of the table of epochs, besides those that name the cell.
EPOCH = ("stage", "epoch", "seconds", "natural", "robust")

# Fields that a comparison sets itself.
OWN = ("seed", "stages", "prune.target", "prune.source", "finetune.source")


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
    """Returns a cell's row of the table: the last stage's network on test data.

    A workdir that comparisons share has attacks of the others, too; the row leaves them out.
    """
    found = json.loads((workdir / files.RESULTS).read_text())
    row, lines = found["rows"][-1], epochs(cell, workdir)
    asked = attacks(workdir)
    after = [of["after"] for name, of in row.get("autoattack", {}).items() if name in asked]
    best = max(float(line["robust"]) for line in lines if line["stage"] == row["stage"])
    return {
        **named(cell),
        "kept": row["parameters"],
        "total": row["total"],
        "live": live(workdir / row["stage"]),
        "flops": round(row["flops"] / row["total_flops"], 4),
        "natural": round(row["natural"], 4),
        **{name: round(accuracy, 4) for name, accuracy in row["robust"].items() if name in asked},
        **{f"after {part}": round(share, 4) for of in after for part, share in of.items()},
        **_of_the_first(_broken_by(workdir, row["stage"])),
        "validation_robust": round(best, 4),
        "images": row["images"],
        "training_seconds": round(sum(line["seconds"] for line in lines)),
        "kept_per_layer": " ".join(str(layer["kept"]) for layer in row["layers"]),
        "warnings": len(row["warnings"]),
    }


def attacks(workdir: pathlib.Path) -> list[str]:
    """Returns the attacks that a run's last evaluation was asked for."""
    found = json.loads((workdir / files.RESULTS).read_text())
    return found["config"]["evaluate"]["run"]


def _broken_by(workdir: pathlib.Path, stage: str) -> np.ndarray | None:
    found = broken_by(workdir, stage)
    return None if found is None or "autoattack" not in attacks(workdir) else found


def _of_the_first(outcome: np.ndarray | None) -> Line:
    """Returns AutoAttack's accuracy on the first `FEW` images, as in published results."""
    if outcome is None:
        return {}
    robust = outcome[:FEW] == ROBUST
    return {f"autoattack_first_{FEW}": round(float(robust.mean()), 4)}


def live(stage: pathlib.Path) -> int:
    """Counts the weights of a stage's network on a path from the images to the classes."""
    model, variables, metadata = network(stage)
    groups = channels.trace(model, metadata["image_shape"]).groups
    return sum(live_weights(jax.jit(bake)(variables)["params"], groups).values())


def epochs(cell: Cell, workdir: pathlib.Path) -> list[Line]:
    """Returns one row per epoch of a cell's stages: seconds and validation accuracies."""
    lines = []
    paths = [workdir / stage / files.METRICS for stage in files.STAGES]
    for path in (path for path in paths if path.exists()):
        for row in map(json.loads, path.read_text().splitlines()):
            values = {**row, **row["validation"]}
            lines.append({**named(cell), **{name: values[name] for name in EPOCH}})
    return lines


def outcome(cell: Cell, workdir: pathlib.Path) -> list[Line]:
    """Returns the row with AutoAttack's outcome on every image; none without that attack."""
    stage = "finetune" if "finetune" in cell.fields["stages"] else "pretrain"
    found = _broken_by(workdir, stage)
    return [] if found is None else [{**named(cell), outcomes.COLUMN: outcomes.to_text(found)}]


def named(cell: Cell) -> Line:
    """Returns the columns that name a cell."""
    return dict(zip(KEY, cell.key, strict=True))


def load(path: pathlib.Path) -> Matrix:
    """Loads the matrix from a Python file.

    Raises:
        SystemExit: If the file has none, or raises an error; in one line.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        wrong = "is no Python file" if path.exists() else "is not there"
        raise SystemExit(f"error: --matrix={path}: {wrong}; allowed are Python files")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a user's file may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = str(path.resolve())
        lines = [frame.lineno for frame in frames if os.path.realpath(frame.filename) == own]
        place = f"{path}:{lines[-1]}" if lines else path
        text = " ".join(str(error).split())
        raise SystemExit(f"error: --matrix={place}: {type(error).__name__}: {text}") from None
    if not isinstance(getattr(module, "MATRIX", None), Matrix):
        allowed = "allowed are files with MATRIX = Matrix(...)"
        raise SystemExit(f"error: --matrix={path}: has no matrix; {allowed}")
    return module.MATRIX


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--matrix", type=pathlib.Path, required=True, help="Python file with MATRIX"
    )
    parser.add_argument("--runs", type=pathlib.Path, required=True, help="folder of the workdirs")
    parser.add_argument(
        "--results", type=pathlib.Path, default=RESULTS, help="folder of the tables"
    )
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
    for each in arguments.set:
        name, given, _ = each.partition("=")
        if not given:
            parser.error(f"--set={each}: allowed is FIELD=VALUE")
        if name in OWN:
            parser.error(f"--set={each}: allowed are fields other than {', '.join(OWN)}")
    for name in ("runs", "results"):
        folder = getattr(arguments, name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--{name}={folder}: {error.strerror}; allowed are folders")
    return arguments


def main() -> None:
    """Runs all cells without a row."""
    arguments = _arguments()
    matrix = load(arguments.matrix)
    fields = dict(each.split("=", 1) for each in arguments.set)
    everything = list(cells(matrix))
    for name in fields:
        if keep := [cell.name for cell in everything if name in cell.fields]:
            print(f"--set={name}: {len(keep)} cells keep their own, such as {keep[0]}", flush=True)
    if not any(arguments.only in cell.name for cell in everything):
        names = ", ".join(cell.name for cell in everything[:5])
        allowed = f"allowed are parts of the names of cells, such as {names}"
        raise SystemExit(f"error: --only={arguments.only}: {allowed}")
    settings.check_there(matrix.base, fields)
    matrix = dataclasses.replace(matrix, fields={**matrix.fields, **fields})
    clock = Clock(arguments.hours)
    work = Work(matrix, arguments.matrix.stem, arguments.runs, arguments.results, clock)
    settings.check_table(work.table, matrix.base, matrix.fields, fields)
    try:
        side_by_side(lambda: work.on(arguments.only), arguments.jobs, clock)
    except StoppedError:
        print("stopped, the time is over; all is saved, the same command goes on", flush=True)
    except subprocess.CalledProcessError as error:
        folder = next(part for part in error.cmd if part.startswith("--workdir="))
        ended = f"ended with status {error.returncode}, as said above"
        raise SystemExit(
            f"error: the run with {folder} {ended}; once that is mended the same command goes on"
        ) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", flush=True)
        sys.exit(128 + signal.SIGINT)
    print(f"{work.done()} of {len(everything)} cells have a row in {work.table}", flush=True)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        matrix: The matrix.
        name: Name of its tables.
        runs: Folder of the workdirs.
        results: Folder of the tables.
        clock: The time.
    """

    matrix: Matrix
    name: str
    runs: pathlib.Path
    results: pathlib.Path
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
        for table in (self._epochs, self._outcomes):
            read(table, *KEY)  # one that cannot be read is an error before anything trains
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
        with claimed(self._lock(cell), wait=True, clock=self.clock):
            stage = stage_for_others(cell, self.matrix)
            fields = {**self.matrix.fields, **cell.fields}
            settings.check_run(self.runs / cell.name, stage, fields)
            if (self.runs / cell.name / stage / files.RESULT).exists():
                return
            if (source := cell.source(self.matrix)) is not None:
                self._provide(source)
            if self._has_row(cell):  # only the network is missing, and rows that go with it
                is_measured = (self.runs / cell.name / files.RESULTS).exists()
                stages = (stage, "evaluate") if is_measured else (stage,)
                cell = dataclasses.replace(cell, fields={**cell.fields, "stages": stages})
            self._run(cell, cell.name)

    def _run(self, cell: Cell, label: str) -> None:
        """Runs a cell and adds its rows, unless the table has them already."""
        self.clock.check()
        print(label, flush=True)
        workdir = self.runs / cell.name
        if (lock := workdir / files.LOCK).exists():
            with claimed(lock, wait=True, clock=self.clock):
                pass  # what began this run was killed, and the run went on: it has ended now
        execute(command(cell, self.matrix, self.runs), self.clock)
        with claimed(self.table.with_suffix(".lock"), wait=True):  # others may have other runs
            if not self._has_row(cell):
                row = result(cell, workdir)
                add(self._epochs, epochs(cell, workdir))
                add(self._outcomes, outcome(cell, workdir))
                add(self.table, [row])  # last: a cell with a row is done

    def done(self) -> int:
        """Counts the cells with a row."""
        keys = self._keys
        return sum(cell.key in keys for cell in cells(self.matrix))

    @property
    def table(self) -> pathlib.Path:
        """The table with a row for each cell."""
        return self.results / f"{self.name}_matrix.csv"

    @property
    def _epochs(self) -> pathlib.Path:
        return self.results / f"{self.name}_epochs.csv"

    @property
    def _outcomes(self) -> pathlib.Path:
        return self.results / f"{self.name}_outcomes.csv"

    def _has_row(self, cell: Cell) -> bool:
        return cell.key in self._keys

    @property
    def _keys(self) -> set[tuple[str, ...]]:
        return {tuple(row[name] for name in KEY) for row in read(self.table, *KEY)}

    def _lock(self, cell: Cell) -> pathlib.Path:
        return self.runs / f"{cell.name}.lock"


if __name__ == "__main__":
    main()
