"""Settles on one accelerator, in ten minutes, what can only be measured there.

    python -m benchmarks.accelerator --out=FILE [--small] [--parts PART ...] [--cifar=NPZ]
    python -m benchmarks.accelerator --table=FILE

It runs from the checkout, without network and without installing anything. Packages that are
missing come from a folder of wheels, if there is one (`benchmarks/wheels.sh` makes it). The parts,
each a process of its own that is killed at its limit:

    device            versions, device, large products
    golden            errors against the golden numbers, at the device's precision and the highest
    steps NETWORK     PGD-10 steps, plain and of HARP's pruning: float32, TF32, bfloat16
    torch_steps       the same plain steps in PyTorch, and through torch.compile
    autoattack        AutoAttack on a network that `steps` trained for moments
    torch_autoattack  the same by torchattacks, if it is there
    pipeline          the share of a step that waits for its batch
    bits              whether two processes find the same bits, with XLA's deterministic operations
                      and without; its four processes compile at the same time
    cifar NETWORK     only with --cifar, CIFAR-10 as for 'npz:FILE': the short experiments of
                      configs/paper.py, as far as the time goes; the same command goes on

Every result is written to FILE as it comes. Time that a part leaves goes to those after it. With
--parts, which names those to run, FILE keeps its other parts; else a FILE that is there is moved to
another name. --small is a dry run with tiny sizes, on any device. --table prints the file's
numbers as Markdown.
"""

import argparse
import contextlib
import functools
import importlib
import json
import math
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.accelerator_process import PROGRAMS, ROOT, Part, end, environment, run, run_bits
from benchmarks.accelerator_wheels import FOR_RUNS, NEEDED, WANTED, missing, unpack
from benchmarks.modes import Sizes, read_sizes

NO_ACCELERATOR = "JAX found no accelerator"
# Modules without which a part is left out, by the first word of its name.
NEEDS = {"torch_steps": ("torch",), "torch_autoattack": ("torch", "torchattacks")}
NEEDS["cifar"] = FOR_RUNS
TRAINED = ("vgg16_bn", "resnet18")  # the shorter run first
LEAST = 60.0  # seconds for which a run is worth starting


def parts(sizes: Sizes, options: argparse.Namespace | None = None) -> list[Part]:
    """Returns the parts in order, with their shares of the time in seconds of ten minutes.

    Args:
        sizes: The sizes.
        options: The command line; with `cifar` there are the parts that train on it.
    """
    ours, torch = "benchmarks.accelerator_parts", "benchmarks.accelerator_torch"
    found = [Part("device", ours, ["device"], 40), Part("golden", ours, ["golden"], 45)]
    found += [
        Part(f"steps {network}", ours, ["steps", f"--network={network}"], 190 / len(sizes.networks))
        for network in sizes.networks
    ]
    found += [
        Part("torch_steps", torch, ["torch_steps"], 50),
        Part("autoattack", ours, ["autoattack"], 130),
        Part("torch_autoattack", torch, ["torch_autoattack"], 60),
        Part("pipeline", ours, ["pipeline"], 25),
        Part("bits", ours, ["digest", f"--network={sizes.attacked}"], 60),
    ]
    if options is None or options.cifar is None:
        return found
    files = [f"--cifar={options.cifar.resolve()}", f"--runs={options.runs.resolve()}"]
    of_cifar = "benchmarks.accelerator_cifar"
    return found + [
        Part(f"cifar {network}", of_cifar, ["cifar", f"--network={network}", *files], 0)
        for network in TRAINED
    ]


class Record:
    """The file of results, written anew with every one of them."""

    def __init__(self, path: pathlib.Path, head: Mapping[str, Any], *, keep: bool):
        """Writes nothing.

        Args:
            path: The file.
            head: What is said of the command beside its parts.
            keep: Whether the parts of a file that is there stay, until they are measured again;
                else it is moved to another name.

        Raises:
            ValueError: If its parts are to stay and it is not such a file.
        """
        self.path = path
        self.content: dict[str, Any] = {**head, "parts": {}}
        if keep and path.exists():
            try:
                self.content["parts"] = dict(json.loads(path.read_text())["parts"])
            except (ValueError, KeyError, TypeError):
                allowed = "allowed are files that this command wrote, and new ones"
                raise ValueError(f"--out={path}: is no file of results; {allowed}") from None
        elif path.is_dir():
            raise ValueError(f"--out={path}: is a folder; allowed are files")
        elif path.exists():
            aside = _unused(path)
            path.rename(aside)
            say(f"{path}: was there; it is {aside} now")

    def write(self, part: str, entry: Mapping[str, Any]) -> None:
        """Writes what a part has so far."""
        self.content["parts"][part] = dict(entry)
        self.save()

    def save(self) -> None:
        """Replaces the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(self.content, indent=1) + "\n")
        temporary.replace(self.path)


def _unused(path: pathlib.Path) -> pathlib.Path:
    """Returns the first name like NAME.1.json that no file has."""
    number = 1
    while (found := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return found


def say(text: str) -> None:
    """Prints progress to standard error, as long as somebody reads it."""
    with contextlib.suppress(OSError):  # the terminal or the pipe is gone
        print(text, file=sys.stderr, flush=True)


def measure(options: argparse.Namespace) -> None:
    """Runs all parts, or those asked for."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options.work, site = pathlib.Path(folder), pathlib.Path(folder) / "site"
        wheels = unpack(options.wheels, site)
        sys.path.append(str(site))
        importlib.invalidate_caches()
        absent = missing((*NEEDED, *FOR_RUNS, *WANTED))
        names = ", ".join(wheel.split("-")[0] for wheel in wheels)
        say(f"not there: {', '.join(absent) or 'nothing'}; from wheels: {names or 'nothing'}")
        if unusable := missing(NEEDED):
            sys.exit(f"error: {', '.join(unusable)}: not there; see benchmarks/wheels.sh")
        everything = parts(read_sizes(options.small), options)
        wanted = options.parts or [part.name.split()[0] for part in everything]
        if "cifar" in wanted and (reason := cannot_train(everything[-1], options)):
            sys.exit(f"error: {reason}")
        head = {"minutes": options.minutes, "missing": absent, "wheels": wheels}
        try:
            record = Record(options.out, head, keep=options.parts is not None)
            record.save()
        except OSError as error:
            sys.exit(f"error: --out={options.out}: {error.strerror}")
        except ValueError as error:
            sys.exit(f"error: {error}")
        chosen = [part for part in everything if part.name.split()[0] in wanted]
        scale = 60 * options.minutes / (sum(part.share for part in chosen) or 1.0)
        due = begun
        for part in chosen:
            due += part.share * scale
            left = (due if part.share else begun + 60 * options.minutes) - time.monotonic()
            one_part(part, left, options, record)
        if options.logs:
            shutil.copytree(
                options.work,
                options.logs,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("site", PROGRAMS, "*.npz"),
            )


def cannot_train(part: Part, options: argparse.Namespace) -> str | None:
    """Returns why the runs on CIFAR-10 would fail after the time of all other parts; else None.

    Args:
        part: One of these runs.
        options: The command line, with the folder 'work' that the parts share.
    """
    command = [sys.executable, "-m", part.module, "check", *part.arguments[1:]]
    command += ["--small"] * options.small
    env = environment(options, part)
    try:
        ran = subprocess.run(
            command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:  # the runs will find out
        return None
    if not ran.returncode:
        return None
    return (ran.stderr.strip().splitlines() or [f"ended with {ran.returncode}"])[-1]


def one_part(part: Part, seconds: float, options: argparse.Namespace, record: Record) -> None:
    """Runs a part, or records why it is left out.

    Args:
        part: The part.
        seconds: The time for it. There is always a second for a part with a share of the time.
        options: The command line, with the folder 'work' that the parts share.
        record: The file of results.
    """
    reason = None
    if lacking := missing(NEEDS.get(part.name.split()[0], ())):
        reason = f"no {', '.join(lacking)}"
    elif not part.share and seconds < LEAST:
        reason = "no time left"
    if reason is not None:
        say(f"{part.name}: {reason}")
        if not record.content["parts"].get(part.name, {}).get("results"):
            left_out = {"state": reason, "small": options.small, "results": {}}
            record.write(part.name, left_out)
        return
    seconds = max(seconds, 1.0)
    say(f"{part.name}: at most {seconds:.0f} s")
    write = functools.partial(record.write, part.name)
    if part.name == "bits":
        run_bits(part, seconds, options, write)
    else:
        run(part, seconds, options, environment(options, part), write)
    entry = record.content["parts"][part.name]
    say(f"{part.name}: {entry['state']}, {entry['seconds']:.0f} s {entry.get('error', '')}")
    if any(NO_ACCELERATOR in line for line in entry.get("error", ())):
        sys.exit(f"error: {NO_ACCELERATOR}; nothing else is measured")


def main() -> None:
    """Measures, or prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, help="file of results, JSON")
    parser.add_argument("--table", type=pathlib.Path, help="print this file's numbers and end")
    parser.add_argument("--small", action="store_true", help="a dry run with tiny sizes")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--parts", nargs="+", help="first words of the parts to run")
    parser.add_argument("--cifar", type=pathlib.Path, help="NPZ file of CIFAR-10, to train on it")
    parser.add_argument(
        "--runs", type=pathlib.Path, help="folder of these runs; FILE.runs if unset"
    )
    parser.add_argument(
        "--wheels",
        type=pathlib.Path,
        default=ROOT / ".wheels",
        help="folder of wheels to install there",
    )
    parser.add_argument("--logs", type=pathlib.Path, help="folder for what the parts print")
    options = parser.parse_args()
    if options.table:
        from benchmarks.accelerator_table import table

        try:
            record = json.loads(options.table.read_text())
            record["parts"].values()
        except OSError as error:
            parser.error(f"--table={options.table}: {error.strerror}")
        except (ValueError, KeyError, TypeError, AttributeError):
            parser.error(f"--table={options.table}: is no file of results")
        print(table(record))
    elif options.out:
        if not 0 < options.minutes < math.inf:
            parser.error(f"--minutes={options.minutes:g}: allowed are numbers above 0")
        options.runs = options.runs or options.out.with_name(f"{options.out.name}.runs")
        if options.cifar is not None and not options.cifar.is_file():
            parser.error(f"--cifar={options.cifar}: is no file; allowed are NPZ files of CIFAR-10")
        if options.cifar is None and "cifar" in (options.parts or ()):
            parser.error("--parts cifar: needs --cifar=FILE, an NPZ file of CIFAR-10")
        known = {part.name.split()[0] for part in parts(read_sizes(options.small), options)}
        if unknown := sorted(set(options.parts or ()) - known):
            parser.error(f"--parts {' '.join(unknown)}: allowed are {', '.join(sorted(known))}")
        attacking = [name for name in options.parts or () if name.endswith("autoattack")]
        if attacking and "steps" not in options.parts:
            parser.error(f"--parts {attacking[0]}: needs the part steps, which trains the network")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost connection does not end it
        measure(options)
    else:
        parser.error("--out=FILE or --table=FILE is needed")


if __name__ == "__main__":
    main()
