"""Starts of one command in forked processes, which can be struck at any change of a file.

A server imports the package once; each start is a fork of it, with an exit code, a log and devices
of its own. So a kill is a real one, and a start takes a second less than a new interpreter.
"""

import dataclasses
import functools
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from typing import Any
from unittest import mock

import runs

from harp_jax import main

CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
POLL = 0.05  # seconds between looks at a start
LIMIT = 120.0  # seconds of looking, after which a start hangs; a machine that stands still does not


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What happens to a start.

    Attributes:
        signal: Signal that it gets; 0 for none.
        at: Number of the change of its workdir's files before which it comes, from 1 on.
        delay: Seconds from then on.
        clock: Seconds by which its clock is ahead.
        devices: Virtual devices that it sees.
        prepare: Called in the process before the command.
    """

    signal: int = 0
    at: int = 0
    delay: float = 0.0
    clock: float = 0.0
    devices: int = 4
    prepare: Callable[[], None] | None = None


class Start:
    """A command that runs; its output goes to a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        workdir: pathlib.Path,
        log: pathlib.Path,
        disturbance: Disturbance,
    ):
        self.log = log
        self.process = _context().Process(
            target=_child, args=(list(arguments), str(workdir), str(log), disturbance), daemon=True
        )
        self.process.start()

    def text(self) -> str:
        """Returns the output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, until: Callable[[], bool] = lambda: False) -> bool:
        """Waits for the end, or for a condition; returns False after the time limit."""
        for _ in range(int(LIMIT / POLL)):
            self.process.join(POLL)
            if self.process.exitcode is not None or until():
                return True
        self.kill()
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    @property
    def code(self) -> int | None:
        """The exit code, minus the signal where one ended it; None while it runs."""
        return self.process.exitcode

    def changes(self) -> int:
        """Returns how many changes the process made that ended by itself; 0 if it was killed."""
        path = pathlib.Path(f"{self.log}.changes")
        return int(path.read_text()) if path.exists() else 0


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fault_starts"])
    path = os.pathsep.join([str(pathlib.Path(__file__).parent), str(runs.ROOT)])
    with mock.patch.dict(os.environ, runs.environment(PYTHONPATH=path)):
        forkserver.ensure_running()
    return context


def _child(arguments: list[str], workdir: str, log: str, disturbance: Disturbance) -> None:
    """Runs the command line as `python -m harp_jax.main` does."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    count = f"--xla_force_host_platform_device_count={disturbance.devices}"
    os.environ["XLA_FLAGS"] = f"{count} {runs.COMPILED_FAST}"
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    sys.argv, sys.orig_argv = arguments[2:], arguments
    changes = _Changes(workdir, disturbance)
    sys.addaudithook(changes)
    if disturbance.clock:
        _step_clock(disturbance.clock)
    if disturbance.prepare is not None:
        disturbance.prepare()
    try:
        main.main()
    finally:
        pathlib.Path(f"{log}.changes").write_text(str(changes.count))


class _Changes:
    """Counts the changes of files below a folder; sends the signal before one of them."""

    def __init__(self, folder: str, disturbance: Disturbance):
        self.folder, self.disturbance, self.count = folder + os.sep, disturbance, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if not os.fsdecode(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        if self.disturbance.signal and self.count == self.disturbance.at:
            self._strike()

    def _strike(self) -> None:
        strike = functools.partial(os.kill, os.getpid(), self.disturbance.signal)
        if self.disturbance.delay == 0:
            strike()
            return
        timer = threading.Timer(self.disturbance.delay, strike)
        timer.daemon = True
        timer.start()


def _step_clock(ahead: float) -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + ahead
    time.time_ns = lambda: nanoseconds() + int(1e9 * ahead)


def was_struck(code: int | None, disturbance: Disturbance) -> bool:
    """Returns whether a start ended as its signal wants it."""
    number = disturbance.signal
    return number != 0 and code in (-number, 128 + number if number == signal.SIGTERM else -number)
