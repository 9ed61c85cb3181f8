"""Runs the parts of `benchmarks.accelerator`, each in a process of its own, with a limit."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Programs of a dry run run for moments and compile for seconds.
COMPILED_FAST = "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
PROGRAMS = "programs"  # folder of compiled programs, in that which the parts share
SHARING = ("steps", "pipeline")  # the parts that keep and take them
GRACE = 25.0  # seconds in which a run that is asked to end may save

Entry = dict[str, Any]  # of a part: its state, limit, seconds, results, and if it is a dry run
Write = Callable[[Entry], Any]


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
        name: Its name in the file.
        module: Its module.
        arguments: Arguments of its module.
        share: Its share of the time; 0 for one that takes all that is left, and saves at its end.
    """

    name: str
    module: str
    arguments: list[str]
    share: float


def environment(options: Any, part: Part, flags: str = "") -> dict[str, str]:
    """Returns the variables of a part's process.

    Args:
        options: The command line, with the folder 'work' that the parts share.
        part: The part.
        flags: More flags of XLA.
    """
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    paths.append(str(options.work / "site"))
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch's parts, and several at a time
    fast = COMPILED_FAST * options.small
    if flags := " ".join(filter(None, (os.environ.get("XLA_FLAGS"), flags, fast))):
        found["XLA_FLAGS"] = flags
    if part.module.endswith("torch"):
        found["JAX_PLATFORMS"] = "cpu"
    if part.name.split()[0] in SHARING:
        found["JAX_COMPILATION_CACHE_DIR"] = str(options.work / PROGRAMS)
        found["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return found


def run(part: Part, seconds: float, options: Any, env: dict[str, str], write: Write) -> None:
    """Runs a part until its end or its limit.

    Args:
        part: The part; one without a share is asked to end before it is killed.
        seconds: Its limit.
        options: The command line, with the folder 'work' that the parts share.
        env: Variables of its process.
        write: Called with all that the part has so far, whenever there is more.
    """
    command = [sys.executable, "-m", part.module, *part.arguments, f"--work={options.work}"]
    command += ["--small"] * options.small
    started = time.monotonic()
    entry: Entry = {"state": "running", "limit": seconds, "seconds": 0.0}
    entry |= {"small": options.small, "results": {}}
    log = options.work / f"{part.name.replace(' ', '-')}.log"
    with log.open("w") as errors:
        child = subprocess.Popen(
            command,
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        _running.add(child)
        soft = seconds if part.share else max(seconds - GRACE, 0.0)
        timers = [threading.Timer(seconds, _signal, (child, signal.SIGKILL))]
        timers += [threading.Timer(soft, _signal, (child, signal.SIGTERM))] * (soft < seconds)
        for timer in timers:
            timer.start()
        try:
            for name, result in _results(child):
                entry["results"][name] = result
                write(entry)
            code = child.wait()
        finally:
            for timer in timers:
                timer.cancel()
            _signal(child, signal.SIGKILL)  # what it has started may live on without it
            _running.discard(child)
    entry["seconds"] = time.monotonic() - started
    entry["state"] = "complete" if code == 0 else f"ended with {code}"
    if code and entry["seconds"] >= soft:
        more = "" if part.share else "; the same command goes on"
        entry["state"] = f"stopped after {entry['seconds']:.0f} s{more}"
    elif code:
        with contextlib.suppress(FileNotFoundError):  # the main thread has ended
            entry["error"] = log.read_text(errors="replace").strip().splitlines()[-3:]
    write(entry)


def _results(child: subprocess.Popen[str]) -> Any:
    """Yields the names and contents of the results that a process prints."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("RESULT "):
            with contextlib.suppress(ValueError):  # half a line of a killed part
                result = json.loads(line.removeprefix("RESULT "))
                yield result.pop("name"), result


_running: set[subprocess.Popen[str]] = set()


def _signal(child: subprocess.Popen[str], number: int) -> None:
    """Signals a part's process, and those that it has started: they hold its output open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def end(*_: Any) -> None:
    """Ends the parts' processes, and this one: a signal's handler. Runs may save before."""
    children = tuple(_running)
    for child in children:
        _signal(child, signal.SIGTERM)
    until = time.monotonic() + GRACE
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(until - time.monotonic(), 0.0))
        _signal(child, signal.SIGKILL)
    sys.exit("error: ended from outside; the file has what there was")


def run_bits(part: Part, seconds: float, options: Any, write: Write) -> None:
    """Runs a few steps in two processes with XLA's deterministic operations and two without.

    All four run at once: most of their time goes into compiling, on the host.

    Args:
        part: The part, whose results are digests by step.
        seconds: The limit of each process.
        options: The command line, with the folder 'work' that the parts share.
        write: Called with the comparison so far, whenever there is more.
    """
    found: dict[tuple[str, int], Entry] = {}
    lock = threading.Lock()
    kinds = {"default": "", "deterministic": DETERMINISTIC}
    threads = []
    for kind, flags in kinds.items():
        for number in (1, 2):

            def note(entry: Entry, key: tuple[str, int] = (kind, number)) -> None:
                with lock:
                    found[key] = entry
                    write({**_compared(found, kinds), "limit": seconds, "small": options.small})

            each = part._replace(name=f"bits-{kind}-{number}")
            env = environment(options, each, flags)
            threads.append(threading.Thread(target=run, args=(each, seconds, options, env, note)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _compared(found: dict[tuple[str, int], Entry], kinds: Any) -> Entry:
    """Compares the digests of two processes of each kind, of the steps that both have taken."""
    results = {}
    for kind in kinds:
        one, other = (found.get((kind, number), {}).get("results", {}) for number in (1, 2))
        both = one.keys() & other.keys()
        same = all(one[step] == other[step] for step in both)
        results[kind] = {"steps": len(both), "same_bits": same if both else None}
    states = sorted({entry["state"] for entry in found.values()})
    entry: Entry = {"state": ", ".join(states), "results": results}
    entry["seconds"] = max(entry["seconds"] for entry in found.values())
    errors = [each["error"] for each in found.values() if "error" in each]
    return {**entry, "error": errors[0]} if errors else entry
