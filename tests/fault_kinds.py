"""The faults of the campaign: what each does, and which outcomes are right."""

import dataclasses
import os
import pathlib
import random
import shutil
import signal
from collections.abc import Callable

from fault_starts import Disturbance
from fault_trials import ROUNDED, SAID, Trial

YEARS = 3.2e7  # seconds of a year


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        apply: Does it to a trial, by dice; returns what it did.
        what: What it does, for the table.
        right: The outcomes that are right besides the same bits.
    """

    apply: Callable[[Trial, random.Random], str]
    what: str
    right: frozenset[str] = frozenset()


def _strike(number: int, trial: Trial, dice: random.Random, devices: int = 1) -> str:
    delay = dice.choice((0.0, 0.0, dice.uniform(0.0, 0.2)))
    at = trial.moment(dice.random())
    return trial.start(Disturbance(signal=number, at=at, delay=delay), devices)


def kill(trial: Trial, dice: random.Random) -> str:
    return _strike(signal.SIGKILL, trial, dice)


def terminate(trial: Trial, dice: random.Random) -> str:
    return _strike(signal.SIGTERM, trial, dice)


def of_a_file(damage: Callable[[pathlib.Path, random.Random], None]):
    """Makes the fault that damages one file: of a finished run, or of one that was killed."""

    def apply(trial: Trial, dice: random.Random) -> str:
        done = ""
        fresh = not trial.workdir.exists()
        if fresh and dice.random() < 0.5:
            shutil.copytree(trial.whole.workdir, trial.workdir, dirs_exist_ok=True)
            trial.note_saved()
        elif fresh:
            done = f"{kill(trial, dice)}, then "
        files = sorted(path for path in trial.workdir.rglob("*") if path.is_file())
        if dice.random() < 0.5:  # most files are those of Orbax
            ours = [path for path in files if not {"checkpoints", "result"} & set(path.parts)]
            files = ours or files
        files = [path for path in files if path.stat().st_size]
        if not files:
            return f"{done}no file"
        path = dice.choice(files)
        trial.touched(path)
        damage(path, dice)
        return f"{done}{path.relative_to(trial.workdir)}"

    return apply


def cut(path: pathlib.Path, dice: random.Random) -> None:
    os.truncate(path, int(dice.random() * path.stat().st_size))


def zero(path: pathlib.Path, dice: random.Random) -> None:
    del dice
    path.write_bytes(bytes(path.stat().st_size))


def remove(path: pathlib.Path, dice: random.Random) -> None:
    del dice
    path.unlink()


def flip(path: pathlib.Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= dice.randrange(1, 256)
    path.write_bytes(content)


def fill_disk(trial: Trial, dice: random.Random) -> str:
    used, whole = (_bytes(folder) for folder in (trial.workdir, trial.whole.workdir))
    size = used + 4096 * (1 + int(dice.random() * max(whole - used, 40_960) / 4096))
    trial.mount(f"remount,size={size}")
    end = trial.start(Disturbance(), again=False)
    trial.mount("remount,size=64m")
    return f"{size // 1024} KiB, {end}"


def _bytes(folder: pathlib.Path) -> int:
    """Returns what the files of a folder take on a disk of pages."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4096 for size in sizes)


def start_twice(trial: Trial, dice: random.Random) -> str:
    del dice
    return trial.start_twice()


def step_clock(trial: Trial, dice: random.Random) -> str:
    ahead = dice.uniform(-3 * YEARS, 3 * YEARS)
    at = trial.moment(dice.random())
    end = trial.start(Disturbance(signal=signal.SIGKILL, at=at, clock=ahead))
    return f"{ahead / YEARS:+.1f} years, {end}"


def other_devices(trial: Trial, dice: random.Random) -> str:
    devices = dice.choice((2, 4))
    return f"{devices}, {_strike(signal.SIGKILL, trial, dice, devices)}"


def two_processes(trial: Trial, dice: random.Random) -> str:
    return trial.start_processes(dice.randrange(1, 5))


SAYS, ROUNDS = frozenset({SAID}), frozenset({ROUNDED})
FAULTS = {
    "kill": Fault(kill, "SIGKILL before any change of a file, or up to 0.2 s after it"),
    "terminate": Fault(terminate, "SIGTERM, likewise"),
    "cut": Fault(of_a_file(cut), "a file of the workdir is cut at any place", SAYS),
    "zero": Fault(of_a_file(zero), "a file has zeros in place of its bytes", SAYS),
    "remove": Fault(of_a_file(remove), "a file is gone", SAYS),
    "flip": Fault(of_a_file(flip), "a byte of a file is another one", SAYS),
    "full disk": Fault(fill_disk, "the disk has less room than the run needs", SAYS),
    "two at once": Fault(start_twice, "the command is started twice at once"),
    "clock": Fault(step_clock, "the clock is up to three years off, in a start that is killed"),
    "devices": Fault(other_devices, "2 or 4 devices, in a start that is killed", ROUNDS),
    "processes": Fault(two_processes, "two processes, killed after 1 to 4 epochs", ROUNDS),
}
