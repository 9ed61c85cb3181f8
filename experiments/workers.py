"""Running the cells of a comparison side by side, until they are done or a time is over."""

import contextlib
import fcntl
import os
import pathlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

SECONDS_TO_LOOK = 0.5  # between two looks at a lock that is taken
SECONDS_TO_SAVE = 300.0  # after which a process that was asked to stop is ended


class StoppedError(Exception):
    """Raised if the time is over, or another worker failed; the state of a run is saved."""


class Clock:
    """The end of the time of all workers.

    Attributes:
        failed: Set by a worker that fails, so that no other one begins anything.
    """

    def __init__(self, hours: float | None = None):
        """Starts the time.

        Args:
            hours: Time from now, > 0; None for no end.
        """
        self._end = None if hours is None else time.monotonic() + 3600 * hours
        self.failed = threading.Event()

    def left(self) -> float | None:
        """Returns the seconds that are left, at least 0; None for no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raises a StoppedError if nothing should begin any more."""
        if self.failed.is_set() or self.left() == 0:
            raise StoppedError


def execute(command: Sequence[str], clock: Clock) -> None:
    """Runs a command to its end, or until the time is over: then it is asked to stop (SIGTERM).

    Args:
        command: The command.
        clock: The time.

    Raises:
        StoppedError: If it was stopped.
        CalledProcessError: If it fails.
        KeyboardInterrupt: After Ctrl-C, which the command has seen, too, and has saved.
    """
    clock.check()
    process = subprocess.Popen(command)
    try:
        status = process.wait(clock.left())
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as reason:
        is_over = isinstance(reason, subprocess.TimeoutExpired)
        if is_over:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_SAVE)
        if is_over:
            raise StoppedError from None
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if status:
        raise subprocess.CalledProcessError(status, command)


def side_by_side(work: Callable[[], None], jobs: int, clock: Clock) -> None:
    """Calls a function in several threads, each on a core of its own, and so its processes.

    Args:
        work: Does what is left to do. Calls share it by locks (`claimed`).
        jobs: Number of threads, >= 1. With one the cores stay as they are.
        clock: The time.

    Raises:
        StoppedError: If the time is over in one of them.
        Exception: The first of other errors in the order of the threads.
    """
    if jobs == 1:
        work()
        return
    cores = sorted(os.sched_getaffinity(0))

    def on_a_core(place: int) -> None:
        os.sched_setaffinity(0, {cores[place % len(cores)]})  # of this thread; processes inherit it
        try:
            work()
        except BaseException:
            clock.failed.set()
            raise

    with ThreadPoolExecutor(jobs) as threads:
        running = [threads.submit(on_a_core, place) for place in range(jobs)]
        try:
            wait(running)
        except KeyboardInterrupt:  # their commands see it, too
            clock.failed.set()
            raise
    errors = [error for each in running if (error := each.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, StoppedError)):
        raise error


@contextlib.contextmanager
def claimed(path: pathlib.Path, wait: bool, clock: Clock | None = None) -> Iterator[bool]:
    """Locks a file among the threads and processes of this machine; yields whether it did.

    Args:
        path: The file; it is made.
        wait: Whether to wait for one that has it; then it always does.
        clock: The time that ends the waiting; None for no end.

    Raises:
        StoppedError: If the time is over first.
    """
    clock = clock or Clock()
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait:
                    yield False
                    return
            clock.check()
            time.sleep(SECONDS_TO_LOOK)
        yield True
