"""Checks that a run that is killed many times ends in the same bits as an undisturbed one.

    python -m benchmarks.kills --config=configs/digits.py --kills=20

An undisturbed run logs one line per epoch and per evaluated stage. Kills (SIGKILL) are spread over
these lines: each comes a random time after its line is logged. If an earlier start got past that
line already, it comes a random time after the run has restored its checkpoints. So every kill hits
a run at work, before its end. Unknown arguments are passed to `harp_jax.main`. The exit code is 1
if anything differs, or if a run ended before its kill.
"""

import argparse
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from harp_jax import checkpoint
from harp_jax.training.stages import STAGES
from harp_jax.workdir import files, read_metrics

MARKER = re.compile(r"\d\d:\d\d:\d\d (\w+ epoch \d+|\w+): (loss|\d+ of \d+ weights)")
AFTER_LINE = 0.5  # longest time between a line of the log and the kill, in seconds
AFTER_START = 2.0  # longest time between the start of restoring and the kill, in seconds
LONGEST_LIFE = 600.0
TIMINGS = ("seconds", "images_per_second", "data_wait")


class Run:
    """A running command and the progress read from its log."""

    def __init__(self, command: Sequence[str]):
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.markers: list[str] = []
        self.last_line = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.last_line = line.strip() or self.last_line
                found = MARKER.match(line)
                if found:
                    line = found[1] if found[2] == "loss" else f"evaluation of {found[1]}"
                    self.markers.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], seconds: float = LONGEST_LIFE) -> None:
        """Waits until the condition holds, the process ends, or the time is up."""
        latest = time.monotonic() + seconds
        with self._changed:
            while not condition() and self.process.poll() is None and time.monotonic() < latest:
                self._changed.wait(0.02)

    def kill(self) -> bool:
        """Kills the process; returns False if it had ended before."""
        ended = self.process.poll() is not None
        if not ended:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        return not ended

    def finish(self) -> None:
        """Waits for the process to end; exits if it failed."""
        self.process.wait()
        self._reader.join()
        if self.process.returncode:
            sys.exit(f"the run failed: {self.last_line}")


def kill_often(
    command: Sequence[str], workdir: pathlib.Path, markers: list[str], kills: int, seed: int
) -> int:
    """Runs a command, kills it a number of times, and then lets it finish; prints each kill.

    Args:
        command: Command of the run.
        workdir: Workdir of the run.
        markers: Lines that an undisturbed run logged.
        kills: Number of kills.
        seed: Seed of the times of the kills.

    Returns:
        Number of kills that hit a run before its end.
    """
    dice = random.Random(seed)
    # The last line is left out: the run may end before a kill that follows it.
    targets = [int((k + dice.random()) / kills * (len(markers) - 1)) for k in range(kills)]
    furthest, hits = -1, 0
    for number, target in enumerate(targets, start=1):
        before, started = _written(workdir), time.monotonic()
        run = Run(command)
        if target > furthest:
            run.wait_for(lambda line=markers[target], run=run: line in run.markers)
            wait = dice.uniform(0.0, AFTER_LINE)
        else:
            run.wait_for(lambda before=before: _written(workdir) != before)
            wait = dice.uniform(0.0, AFTER_START)
        run.wait_for(lambda: False, wait)
        hit = run.kill()
        hits += hit
        furthest = max([furthest, *(markers.index(line) for line in run.markers)])
        where = f"after {markers[furthest]}" if furthest >= 0 else "in the first epoch"
        what = "killed" if hit else "had ended"
        lived = time.monotonic() - started
        print(f"kill {number:3}: {what} {lived:5.1f} s after its start, {where}", flush=True)
    Run(command).finish()
    return hits


def _written(workdir: pathlib.Path) -> int:
    """Returns when config.json was written: at every start, after all checks, before any work."""
    path = workdir / files.CONFIG
    return path.stat().st_mtime_ns if path.exists() else 0


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Returns the stages and files in which two workdirs differ, apart from times."""
    found = []
    for stage in STAGES:
        trees = [checkpoint.load(workdir / stage) for workdir in (first, second)]
        equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *trees)
        if not all(jax.tree.leaves(equal)):
            found.append(f"{stage}: arrays")
        rows = [_timeless(read_metrics(w / stage / files.METRICS)) for w in (first, second)]
        if rows[0] != rows[1]:
            found.append(f"{stage}: {files.METRICS}")
    results = [json.loads((w / files.RESULTS).read_text())["rows"] for w in (first, second)]
    if _timeless(results[0]) != _timeless(results[1]):
        found.append(files.RESULTS)
    return found


def _timeless(rows: list[dict]) -> list[dict]:
    return [{key: row[key] for key in row if key not in TIMINGS} for row in rows]


def main() -> None:
    """Runs both and compares their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config", default="configs/digits.py", help="configuration of the run (%(default)s)"
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the times of the kills (%(default)s)"
    )
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        workdirs = pathlib.Path(folder, "whole"), pathlib.Path(folder, "killed")
        commands = [
            [
                *(sys.executable, "-m", "harp_jax.main"),
                *(f"--config={options.config}", f"--workdir={workdir}"),
                f"--config.compilation_cache={folder}/programs",
                *overrides,
            ]
            for workdir in workdirs
        ]
        whole = Run(commands[0])
        whole.finish()
        hits = kill_often(commands[1], workdirs[1], whole.markers, options.kills, options.seed)
        found = differences(*workdirs)
    print(f"kills of a run at work: {hits} of {options.kills}")
    print(f"identical: {not found}" + "".join(f"\n  differs in {each}" for each in found))
    sys.exit(1 if found or hits < options.kills else 0)


if __name__ == "__main__":
    main()
