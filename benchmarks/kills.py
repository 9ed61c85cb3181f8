"""A run that is killed again and again against one that is not: do they end in the same bits?

    python -m benchmarks.kills --config=configs/digits.py --kills=20

Kills (SIGKILL) fall a random moment after random lines of the log, in all stages and in the
evaluation; a second kill at the same line falls a random moment after the start. Arguments that
this script does not know go to `harp_jax.main`. Exit code 1 if anything differs.
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
from collections.abc import Sequence

import jax
import numpy as np

from harp_jax import checkpoint
from harp_jax.training.metrics import read_rows
from harp_jax.training.stages import STAGES

MARKER = re.compile(r"\d\d:\d\d:\d\d (\w+ epoch \d+|\w+): (loss|\d+ of \d+ weights)")
LONGEST_WAIT = 0.5  # seconds between a line of the log and the kill
EARLIEST, LATEST = 2.0, 9.0  # seconds between a start and a kill without a line
TIMINGS = ("seconds", "images_per_second")


class Run:
    """A running command, and what its log has said."""

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
                    self.markers.append(found[1])
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, marker: str | None, seconds: float) -> None:
        """Returns after the marker's line or the time, whichever is first."""
        with self._changed:
            self._changed.wait_for(
                lambda: marker in self.markers or self.process.poll() is not None, seconds
            )

    def kill(self) -> bool:
        """Kills the process; False if it had ended by itself."""
        ended = self.process.poll() is not None
        if not ended:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        return not ended

    def finish(self) -> None:
        """Waits for a good end."""
        self.process.wait()
        self._reader.join()
        if self.process.returncode:
            sys.exit(f"the run failed: {self.last_line}")


def kill_often(command: Sequence[str], markers: list[str], kills: int, seed: int) -> None:
    """Runs a command to its end through so many kills, and prints where each one fell."""
    dice = random.Random(seed)
    targets = sorted(dice.choices(range(len(markers)), k=kills))
    seen: set[str] = set()
    for number, target in enumerate(targets, start=1):
        marker = markers[target]
        run, started = Run(command), time.monotonic()
        if marker in seen:
            run.wait_for(None, dice.uniform(EARLIEST, LATEST))
        else:
            run.wait_for(marker, 600.0)
            run.wait_for(None, dice.uniform(0.0, LONGEST_WAIT))
        killed = run.kill()
        seen.update(run.markers, [marker])
        said = run.markers[-1] if run.markers else "nothing new"
        lived = time.monotonic() - started
        how = "killed" if killed else "had ended"
        print(f"kill {number:3}: {how} after {lived:5.1f} s, last log line: {said}", flush=True)
    Run(command).finish()


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """What two workdirs hold differently, apart from times."""
    found = []
    for stage in STAGES:
        trees = [checkpoint.load(workdir / stage) for workdir in (first, second)]
        equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), *trees)
        if not all(jax.tree.leaves(equal)):
            found.append(f"{stage}: arrays")
        rows = [_timeless(read_rows(w / stage / "metrics.jsonl")) for w in (first, second)]
        if rows[0] != rows[1]:
            found.append(f"{stage}: metrics.jsonl")
    results = [json.loads((w / "results.json").read_text())["rows"] for w in (first, second)]
    if _timeless(results[0]) != _timeless(results[1]):
        found.append("results.json")
    return found


def _timeless(rows: list[dict]) -> list[dict]:
    return [{key: row[key] for key in row if key not in TIMINGS} for row in rows]


def main() -> None:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
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
        kill_often(commands[1], whole.markers, options.kills, options.seed)
        found = differences(*workdirs)
    print(f"identical: {not found}" + "".join(f"\n  differs in {each}" for each in found))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
