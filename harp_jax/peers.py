"""Runs in several processes: joining the others, and ending in one line when one of them is gone.

JAX ends a process whose peers are gone by an abort in native code, which Python cannot catch. So
the command starts itself once more: the child computes, and the parent waits, forwards signals, and
turns such an end into one line and an exit code.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

LOST = 75  # exit code of a process that ends since another one is gone: try again
SECONDS = 30  # without a sign of life, after which a process counts as gone

_NATIVE = "HARP_JAX_NATIVE_OUTPUT"  # in the child: where native code writes what the parent reads
_PARENT = "HARP_JAX_PARENT"  # in the child: the number of the process that waits for it
_PARENT_DIED = 1  # prctl's PR_SET_PDEATHSIG
_OF_SERVICE = re.compile(r"[EFIW]\d{4} .*?(coordination_service|client\.h|preemption_sync)")
_FATAL = "JAX distributed service detected fatal errors"
_OF_PEERS = re.compile(r"Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|[Cc]oordination ?[Ss]ervice")


def wrong_flags(
    distributed: bool, coordinator: str | None, processes: int | None, process: int | None
) -> str | None:
    """Returns what is wrong with the flags of several processes in one line, or None."""
    given = {"processes": processes, "process": process}
    for name, value in given.items():
        if value is not None and coordinator is None and not distributed:
            return f"--{name}={value}: allowed with --coordinator=HOST:PORT, or left out"
        if value is None and coordinator is not None and not distributed:
            return f"--coordinator={coordinator}: allowed with --{name}=N"
    if processes is not None and processes < 1:
        return f"--processes={processes}: allowed are whole numbers >= 1"
    if process is not None and not 0 <= process < (processes or process + 1):
        return f"--process={process}: allowed are whole numbers from 0 to --processes less 1"
    return None


def is_child() -> bool:
    """Returns whether this process is the one that computes."""
    return _NATIVE in os.environ


def watch(saved: Callable[[], str]) -> int:
    """Runs this command in a child process, and waits for it.

    Args:
        saved: Says what is saved, for the line about a process that is gone.

    Returns:
        The exit code: that of the child, or `LOST` after a line on stderr that names the process
        that is gone.
    """
    reading, writing = os.pipe()
    child = subprocess.Popen(
        sys.orig_argv,
        env={**os.environ, _NATIVE: str(writing), _PARENT: str(os.getpid())},
        pass_fds=(writing,),
        process_group=0,  # Ctrl-C reaches the child once: through this process
    )
    os.close(writing)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: child.send_signal(number))
    with os.fdopen(reading, errors="replace") as lines:
        native = _forward(lines)
    code = child.wait()
    if code == -signal.SIGABRT and _FATAL in native:
        print(_line(_gone(native), saved()), file=sys.stderr)
        return LOST
    return code if code >= 0 else 128 - code


def _forward(lines: Iterator[str]) -> str:
    """Prints what native code of the child says, but what JAX says of peers; returns that."""
    held = ""
    for line in lines:
        if _FATAL in held or _OF_SERVICE.match(line):
            held += line
        elif held and not line.startswith(("E", "F", "I", "W")):
            held += line  # goes on with the line before
        else:
            sys.stderr.write(line)
            sys.stderr.flush()
    return held


def _gone(native: str) -> str:
    """Names the processes that JAX says are gone."""
    found = re.search(r"unhealthy[^\n]*:\n((?:\d+\n?)+)", native)
    numbers = found[1].split() if found else []
    if not numbers and "Socket closed" in native:
        numbers = ["0"]  # it is the one that all others are connected to
    if not numbers:
        return "another process"
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def _line(gone: str, saved: str) -> str:
    return (
        f"lost: {gone} is gone; {saved}; start the same command again, in as many processes or in"
        " one"
    )


def join(address: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes, in the child.

    Args:
        address: HOST:PORT of process 0; None if the cluster tells.
        processes: Number of processes; None if the cluster tells.
        process: Number of this process; None if the cluster tells.
    """
    _take_native_output()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
        if os.getppid() != int(os.environ[_PARENT]):  # it is gone already
            os._exit(LOST)
    jax.distributed.initialize(address, processes, process, heartbeat_timeout_seconds=SECONDS)


def _take_native_output() -> None:
    """Leads the output of native code to the parent; that of Python stays on stderr."""
    native = int(os.environ[_NATIVE])
    stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(native, 2)
    os.close(native)
    sys.stderr = stderr


@contextlib.contextmanager
def ending_with_others(saved: Callable[[], str]) -> Iterator[None]:
    """Ends this process in one line if the block fails since another process is gone.

    Args:
        saved: Says what is saved.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or not _OF_PEERS.search(_text(error)):
            raise
        if jax.process_count() > 2:  # JAX finds out which one, and aborts
            time.sleep(2 * SECONDS)
            gone = "another process"
        else:
            gone = f"process {1 - jax.process_index()}"
        print(_line(gone, saved()), file=sys.stderr, flush=True)
        os._exit(LOST)  # leaving as usual, JAX would wait for the other process


def _text(error: BaseException) -> str:
    """Returns the text of an error and of those that it came from."""
    texts, each = [], error
    while isinstance(each, BaseException):
        texts.append(str(each))
        each: Any = each.__cause__ or each.__context__
    return "\n".join(texts)
