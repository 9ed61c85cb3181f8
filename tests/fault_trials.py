"""A trial of the fault campaign: one experiment, started again until it is done or cannot go on."""

import contextlib
import dataclasses
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import fault_config
import runs
from fault_starts import Disturbance, Start, was_struck

from harp_jax import peers
from harp_jax.checkpoint import is_complete, reading
from harp_jax.workdir import read_metrics, records

SAME, ROUNDED = "same bits", "same up to reduction order"
SAID, LOST, WRONG = "said clearly", "lost", "silently wrong"
SKIPPED = "not possible here"
Key = tuple[str, int | str]  # a stage, and one of its epochs or 'results.json'
OUTCOMES = (SAME, ROUNDED, SAID, LOST, WRONG, SKIPPED)

MOST_STARTS = 12
GOES_ON = re.compile(r"\b(allowed|remove|same command|first)\b")  # what a line has to say
OTHER_RUN = "another process is running in it"


class Ended(Exception):  # noqa: N818  it is no error
    """Ends a trial: its outcome, and what led to it."""

    def __init__(self, outcome: str, why: str):
        super().__init__(why)
        self.outcome, self.why = outcome, why


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """The run that all trials are compared with.

    Attributes:
        workdir: Its workdir.
        changes: How often it changed a file.
        programs: Folder of compiled programs.
    """

    workdir: pathlib.Path
    changes: int
    programs: pathlib.Path


class Trial:
    """The workdir of a trial, what was done to it, and what was saved in it."""

    def __init__(self, folder: pathlib.Path, whole: Undisturbed, prepare: Any = None):
        self.folder, self.whole, self.prepare = folder, whole, prepare
        self.disk = folder / "disk"
        self.workdir = self.disk / "run"
        self.disk.mkdir(parents=True, exist_ok=True)
        self.starts = 0
        self.changes = 0  # of the starts so far
        self.saved: dict[Key, float] = {}  # seconds of epochs and rows that may not be made again
        self.unsafe: dict[Key, float] = {}  # of those that may, since a file of theirs is damaged
        self.damaged: list[pathlib.Path] = []
        self.acted: list[str] = []  # clear lines, each followed

    def command(self, *options: str) -> list[str]:
        programs = f"--config.compilation_cache={self.whole.programs}"
        return runs.command(self.workdir, programs, *options, config=fault_config.__file__)

    def moment(self, share: float) -> int:
        """Returns the number of a change among those that an undisturbed run has left."""
        return 1 + int(share * max(self.whole.changes - self.changes, 20))

    def start(self, disturbance: Disturbance, devices: int = 1, *, again: bool = True) -> str:
        """Starts the command; follows what it says until it ends well or is struck.

        Args:
            disturbance: What happens to each start.
            devices: Number of devices that it is told to use.
            again: Whether to start it again after a line was followed.

        Returns:
            How it ended, in a few words.
        """
        while True:
            (end,) = self._run(disturbance, [self.command(f"--config.devices={devices}")])
            if end.code == 0:
                return "finished"
            if was_struck(end.code, disturbance):
                return f"struck at change {disturbance.at}"
            self.follow(end)
            if not again:
                return "stopped"

    def start_twice(self) -> str:
        """Starts two of the same command at once: at most one of them is refused."""
        ends = self._run(Disturbance(), [self.command("--config.devices=1")] * 2)
        if all(OTHER_RUN in end.text() for end in ends):
            raise Ended(LOST, "both runs were refused")
        failed = [end for end in ends if end.code != 0 and OTHER_RUN not in end.text()]
        if failed:
            self.follow(failed[0])
        return f"{sum(end.code == 0 for end in ends)} finished"

    def start_processes(self, epochs: int) -> str:
        """Starts two processes, and kills both after so many epochs."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"--coordinator=127.0.0.1:{listener.getsockname()[1]}"
        commands = [
            self.command(address, "--processes=2", f"--process={number}") for number in range(2)
        ]
        ends = self._run(Disturbance(devices=1), commands, epochs)
        codes = [end.code for end in ends]
        if codes == [0, 0]:
            return "finished"
        if -signal.SIGKILL in codes:
            return f"killed after {epochs} epochs"
        for end in ends:
            if end.code not in (0, peers.LOST):
                self.follow(end)
                return "refused"
        raise Ended(LOST, f"the processes ended with {codes}")

    def _run(
        self, disturbance: Disturbance, commands: list[list[str]], epochs: int | None = None
    ) -> list[Start]:
        """Runs commands side by side to their ends, or until the first logged so many epochs."""
        self.starts += 1
        if self.starts > MOST_STARTS:
            raise Ended(LOST, f"not done after {MOST_STARTS} starts")
        disturbance = dataclasses.replace(disturbance, prepare=self.prepare)
        logs = [self.folder / f"start-{self.starts}-{place}.log" for place in range(len(commands))]
        starts = [
            Start(command, self.workdir, log, disturbance)
            for command, log in zip(commands, logs, strict=True)
        ]

        def reached() -> bool:
            return epochs is not None and starts[0].text().count(" epoch ") >= epochs

        for start in starts:
            if not start.wait(reached):
                raise Ended(LOST, f"no end after start {self.starts}")
        if reached():
            for start in starts:
                start.kill()
        self.changes += disturbance.at or starts[0].changes()
        self.note_saved()
        return starts

    def follow(self, end: Start) -> None:
        """Does what the last line of a start says; ends the trial if that is not clear."""
        lines = end.text().strip().splitlines() or [""]
        line = lines[-1]
        clear = line.startswith("error: ") and str(self.workdir) in line and GOES_ON.search(line)
        if "Traceback" in end.text() or not clear:
            raise Ended(LOST, f"exit code {end.code} and no clear line: {line[:400]}")
        if OTHER_RUN in line:  # processes that were killed are not yet gone
            time.sleep(1.0)
            return
        if line in self.acted:
            raise Ended(LOST, f"what it says does not help: {line[:400]}")
        self.acted.append(line)
        if "No space left" in line and self.disk.is_mount():
            self.mount("remount,size=64m")
        elif number := re.search(r": line (\d+)\b.*; remove that line", line):
            path = _named(line, self.workdir)
            self.touched(path)
            lines = path.read_bytes().split(b"\n")
            del lines[int(number[1]) - 1]
            path.write_bytes(b"\n".join(lines))
        elif re.search(r"\bremove (it|this folder)\b", line):
            self.remove(_named(line, self.workdir))
        else:
            raise Ended(SAID, line)

    def remove(self, path: pathlib.Path) -> None:
        """Removes a file or folder of the workdir, as a line says."""
        if self.workdir not in path.parents or not path.exists():
            raise Ended(LOST, f"says to remove {path}")
        self.touched(path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def touched(self, path: pathlib.Path) -> None:
        """Takes note that a file is damaged or gone: what depends on it may be made again."""
        self.damaged.append(path)
        top = path.relative_to(self.workdir).parts[0]
        unsafe = {key: seconds for key, seconds in self.saved.items() if top in key}
        self.unsafe = {**unsafe, **self.unsafe}
        self.saved = {key: self.saved[key] for key in self.saved.keys() - unsafe.keys()}

    def note_saved(self) -> None:
        """Takes note of what is saved, unless a file of it was damaged before."""
        tops = {path.relative_to(self.workdir).parts[0] for path in self.damaged}
        found = {key: each for key, each in saved(self.workdir).items() if not tops & set(key)}
        self.saved = {**found, **self.saved}

    def logs(self) -> str:
        """Returns what all starts have printed."""
        logs = sorted(self.folder.glob("start-*.log"))
        return "\n".join(log.read_text(errors="replace") for log in logs)

    def mount(self, options: str) -> None:
        """Mounts a small disk below the workdir, or changes it."""
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            raise Ended(SKIPPED, "this user may not mount file systems")

    @contextlib.contextmanager
    def room(self, limited: bool) -> Iterator[None]:
        """Gives the trial a disk of its own, if its size will be limited."""
        if limited:
            self.mount("size=64m,nr_inodes=10k")
        try:
            yield
        finally:
            if limited and self.workdir.exists():
                shutil.copytree(self.workdir, self.folder / "left")
            if limited:
                subprocess.run(["umount", "--lazy", self.disk], capture_output=True, check=False)


def _named(line: str, workdir: pathlib.Path) -> pathlib.Path:
    """Returns the path that a line says is damaged, else the one that it names first."""
    path = rf"({re.escape(str(workdir))}/[\w./-]*\w)"
    found = re.search(rf"{path}: is damaged", line) or re.search(path, line)
    inside = re.search(r"its ([\w.]+) cannot be read", line)
    return workdir / inside[1] if inside else pathlib.Path(found[1] if found else workdir)


def saved(workdir: pathlib.Path) -> dict[Key, float]:
    """Returns the seconds of the epochs and of the table's rows that are saved.

    They are times, so they are others if an epoch is trained or a network measured again.
    """
    found: dict[Key, float] = {}
    for stage in runs.STAGES:
        directory = reading.absolute(workdir / stage)
        steps = reading.finalized(directory / "checkpoints" / "last")
        last = float("inf") if is_complete(directory) else int(steps[0].name) if steps else 0
        with contextlib.suppress(ValueError):
            rows = [row for row in read_metrics(directory / "metrics.jsonl") if row["step"] <= last]
            found |= {(stage, row["epoch"]): row["seconds"] for row in rows}
    with contextlib.suppress(ValueError):
        table = records.read_table(reading.absolute(workdir)) or {"rows": []}
        found |= {(row["stage"], "results.json"): row["seconds"] for row in table["rows"]}
    return found
