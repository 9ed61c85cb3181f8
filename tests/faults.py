"""A fault campaign: whatever happens to a run, it ends in the same bits or says clearly why not.

python -m tests.faults --trials=100 --seed=0

Each trial runs a small experiment, applies one to three faults drawn by its number, starts the
command again until it is done or says that it cannot go on, and compares all that the run gives
with an undisturbed run. Where a line of the command says what to remove, the trial removes it. Each
trial's row goes to trials.csv as it comes; with --workdir, the same command goes on after the last.
The exit code is 1 if a trial is lost or silently wrong; its folder is kept in --workdir.
"""

import argparse
import collections
import csv
import logging
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parent))
if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"

from fault_judge import judge
from fault_kinds import FAULTS
from fault_starts import Disturbance, Start
from fault_trials import LOST, OUTCOMES, ROUNDED, SAID, SAME, WRONG, Ended, Trial, Undisturbed

COLUMNS = ("seed", "number", "faults", "outcome", "largest", "starts", "seconds", "why")
BAD = (LOST, WRONG)
Row = dict[str, str]


def draw(seed: int, number: int) -> list[str]:
    """Returns the names of a trial's faults, one to three."""
    dice = random.Random(f"faults {seed} {number}")
    return dice.choices(list(FAULTS), k=dice.choice((1, 1, 2, 3)))


def undisturbed(folder: pathlib.Path) -> Undisturbed:
    """Makes the run that all trials are compared with, unless the folder has it."""
    workdir, log = folder / "undisturbed" / "disk" / "run", folder / "undisturbed" / "run.log"
    whole = Undisturbed(workdir, 0, folder / "programs")
    if not (workdir / "report" / "index.html").exists():
        trial = Trial(folder / "undisturbed", whole)
        run = Start(trial.command("--config.devices=1"), workdir, log, Disturbance())
        if not run.wait() or run.code != 0:
            raise SystemExit(f"the undisturbed run failed:\n{run.text()}")
    changes = int(pathlib.Path(f"{log}.changes").read_text())
    return Undisturbed(workdir, changes, whole.programs)


def run_trial(
    folder: pathlib.Path,
    whole: Undisturbed,
    seed: int,
    number: int,
    names: Sequence[str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Row:
    """Runs a trial.

    Args:
        folder: Where it makes a folder of its own, which it removes if the outcome is right.
        whole: The undisturbed run.
        seed: Seed of the campaign.
        number: Number of the trial.
        names: Its faults; those that are drawn if None.
        prepare: Called in each process before the command.

    Returns:
        The row of the table.
    """
    own, started = folder / f"trial-{seed}-{number}", time.monotonic()
    if own.exists():
        shutil.rmtree(own)  # of a campaign that was stopped
    names = draw(seed, number) if names is None else names
    right = {SAME}.union(*(FAULTS[name].right for name in names))
    trial, done, largest = Trial(own, whole, prepare), [], 0.0
    try:
        with trial.room("full disk" in names):
            for place, name in enumerate(names):
                dice = random.Random(f"faults {seed} {number} {place}")
                done.append(f"{name} ({FAULTS[name].apply(trial, dice)})")
            trial.start(Disturbance())
            outcome, largest, why = judge(trial, ROUNDED in right)
    except Ended as end:
        outcome, why = end.outcome, end.why
        done += [f"{name} (...)" for name in names[len(done) :]]
    if outcome == SAID and SAID not in right:
        outcome, why = LOST, f"needs a person: {why}"
    if outcome not in BAD:
        shutil.rmtree(own)
    texts = ("; ".join(done), outcome, f"{largest:.1e}", str(trial.starts))
    seconds = f"{time.monotonic() - started:.1f}"
    return dict(zip(COLUMNS, (str(seed), str(number), *texts, seconds, why), strict=True))


def campaign(folder: pathlib.Path, seed: int, numbers: Sequence[int]) -> list[Row]:
    """Runs the trials that the folder's table lacks; returns the rows of all."""
    folder.mkdir(parents=True, exist_ok=True)
    table, whole = folder / "trials.csv", undisturbed(folder)
    rows: dict[int, Row] = {}
    if table.exists():
        with table.open(newline="") as file:
            rows = {int(row["number"]): row for row in csv.DictReader(file)}
            rows = {number: row for number, row in rows.items() if row["seed"] == str(seed)}
    for number in numbers:
        if number in rows:
            continue
        rows[number] = run_trial(folder, whole, seed, number)
        is_new = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(rows[number])
        print(*(rows[number][name] for name in COLUMNS[1:]), sep=" | ", flush=True)
    return [rows[number] for number in numbers]


def summary(rows: Sequence[Row]) -> str:
    """Returns a table: trials by outcome, for each fault and for all."""
    counts = {name: collections.Counter() for name in (*FAULTS, "all trials")}
    for row in rows:
        for name in {part.partition(" (")[0] for part in row["faults"].split("; ")}:
            counts[name][row["outcome"]] += 1
        counts["all trials"][row["outcome"]] += 1
    lines = ["| fault | " + " | ".join(OUTCOMES) + " |", "|---" * (len(OUTCOMES) + 1) + "|"]
    for name, found in counts.items():
        lines.append(f"| {name} | " + " | ".join(str(found[each]) for each in OUTCOMES) + " |")
    largest = max((float(row["largest"]) for row in rows if row["outcome"] == ROUNDED), default=0.0)
    return "\n".join([*lines, f"largest difference on other devices: {largest:.1e}"])


def main() -> None:
    """Runs a campaign and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100, help="Number of trials.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the faults.")
    parser.add_argument("--first", type=int, default=0, help="Number of the first trial.")
    parser.add_argument("--workdir", type=pathlib.Path, help="Folder of the trials; else a new one")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # of files that are looked at; runs have logs of their own
    numbers = range(options.first, options.first + options.trials)
    if options.workdir is not None:
        rows = campaign(options.workdir.absolute(), options.seed, numbers)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = campaign(pathlib.Path(folder), options.seed, numbers)
    print(summary(rows))
    sys.exit(any(row["outcome"] in BAD for row in rows))


if __name__ == "__main__":
    main()
