"""Settles on one accelerator, in ten minutes, what can only be measured there.

    python -m benchmarks.accelerator --out=FILE [--small]
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
                      and without

Every result is written to FILE as it comes. Time that a part leaves goes to those after it. Parts
that are already complete in FILE are kept with --parts, which names those to run. --small is a dry
run with tiny sizes, on any device. --table prints the file's numbers as Markdown.
"""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.modes import Sizes, read_sizes

ROOT = pathlib.Path(__file__).resolve().parents[1]
NEEDED = ("absl", "etils", "flax", "jax", "jaxtyping", "ml_collections", "optax", "orbax", "tqdm")
NEEDED = (*NEEDED, "wadler_lindig", "PIL", "safetensors")
MODULES = {"pillow": "PIL"}  # by the name of the wheel, where they differ
WANTED = ("torch", "torchattacks", "ml_dtypes", "tensorboardX", "tensorflow_datasets", "mlxtend")
NO_ACCELERATOR = "JAX found no accelerator"
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
# Programs of a dry run run for moments and compile for seconds.
COMPILED_FAST = "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"

Entry = dict[str, Any]  # of a part: its state, limit, seconds and results


class Part(NamedTuple):
    """A part: its name in the file, its module and arguments, and its share of the time."""

    name: str
    module: str
    arguments: list[str]
    share: float


def parts(sizes: Sizes) -> list[Part]:
    """Returns the parts in order, with their shares of the time in seconds of ten minutes."""
    ours, torch = "benchmarks.accelerator_parts", "benchmarks.accelerator_torch"
    found = [Part("device", ours, ["device"], 25), Part("golden", ours, ["golden"], 55)]
    found += [
        Part(f"steps {network}", ours, ["steps", f"--network={network}"], 210 / len(sizes.networks))
        for network in sizes.networks
    ]
    return [
        *found,
        Part("torch_steps", torch, ["torch_steps"], 55),
        Part("autoattack", ours, ["autoattack"], 110),
        Part("torch_autoattack", torch, ["torch_autoattack"], 75),
        Part("pipeline", ours, ["pipeline"], 25),
        Part("bits", ours, ["digest", f"--network={sizes.attacked}"], 35),
    ]


class Record:
    """The file of results, written anew with every one of them."""

    def __init__(self, path: pathlib.Path, head: Mapping[str, Any], *, keep: bool):
        self.path = path
        self.content: dict[str, Any] = {**head, "parts": {}}
        if keep and path.exists():
            self.content["parts"] = json.loads(path.read_text())["parts"]

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


def say(text: str) -> None:
    """Prints progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def missing(names: tuple[str, ...]) -> list[str]:
    """Returns the modules that cannot be found."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def unpack_wheels(folder: pathlib.Path, site: pathlib.Path) -> list[str]:
    """Unpacks the wheels of modules that are missing; returns their files' names.

    It also writes the metadata of this checkout there, which `harp_jax` reads its version from.
    """
    site.mkdir()
    absent = {name.lower() for name in missing((*NEEDED, *WANTED))}
    taken = []
    for wheel in sorted(folder.glob("*.whl")):
        name, *_, tag, binary, _ = wheel.stem.split("-")
        if MODULES.get(name, name).lower() in absent and _fits(tag, binary):
            with zipfile.ZipFile(wheel) as file:
                file.extractall(site)
            taken.append(wheel.name)
    information = site / "harp_jax-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: harp_jax\nVersion: 0.1.0\n")
    return taken


def _fits(tag: str, binary: str) -> bool:
    """Says whether the Python that runs can import a wheel of tags like 'cp312' and 'abi3'."""
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return binary in ("none", "abi3") or ours in tag.split(".")


def environment(site: pathlib.Path, module: str, *, small: bool, flags: str = "") -> dict[str, str]:
    """Returns the variables of a part's process."""
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""), str(site)]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    found["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # PyTorch's parts, and several at a time
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), flags, COMPILED_FAST * small)))
    if flags:
        found["XLA_FLAGS"] = flags
    if module.endswith("torch"):
        found["JAX_PLATFORMS"] = "cpu"
    return found


def run(
    part: Part, seconds: float, options: Any, env: dict[str, str], write: Callable[[Entry], Any]
) -> None:
    """Runs a part until its end or its limit.

    Args:
        part: The part.
        seconds: Its limit.
        options: The command line, with the folder 'work' that the parts share.
        env: Variables of its process.
        write: Called with all that the part has so far, whenever there is more.
    """
    command = [sys.executable, "-m", part.module, *part.arguments, f"--work={options.work}"]
    command += ["--small"] * options.small
    started = time.monotonic()
    entry: Entry = {"state": "running", "limit": seconds, "seconds": 0.0, "results": {}}
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
        timer = threading.Timer(seconds, _kill, (child,))
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith("RESULT "):
                    with contextlib.suppress(ValueError):  # half a line of a killed part
                        result = json.loads(line.removeprefix("RESULT "))
                        entry["results"][result.pop("name")] = result
                        write(entry)
            code = child.wait()
        finally:
            timer.cancel()
            if child.poll() is None:
                _kill(child)
            _running.discard(child)
    entry["seconds"] = time.monotonic() - started
    entry["state"] = "complete" if code == 0 else f"ended with {code}"
    if code and entry["seconds"] >= seconds:
        entry["state"] = f"stopped after {seconds:.0f} s"
    elif code:
        with contextlib.suppress(FileNotFoundError):  # the main thread has ended
            entry["error"] = log.read_text(errors="replace").strip().splitlines()[-3:]
    write(entry)


_running: set[subprocess.Popen[str]] = set()


def _kill(child: subprocess.Popen[str]) -> None:
    """Ends a part's process, and those that it has started: they hold its output open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _end(*_: Any) -> None:
    """Ends the parts' processes, and this one: a signal's handler."""
    for child in tuple(_running):
        _kill(child)
    sys.exit("error: ended from outside; the file has what there was")


def run_bits(part: Part, seconds: float, options: Any, site: pathlib.Path) -> Entry:
    """Runs a few steps in two processes with XLA's deterministic operations and two without."""
    found: dict[str, Entry] = {}
    kinds = {"default": "", "deterministic": DETERMINISTIC}
    threads = []
    for kind, flags in kinds.items():
        for number in (1, 2):
            each = part._replace(name=f"bits-{kind}-{number}")
            env = environment(site, part.module, small=options.small, flags=flags)
            write = functools.partial(found.__setitem__, f"{kind} {number}")
            threads.append(threading.Thread(target=run, args=(each, seconds, options, env, write)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results = {}
    for kind in kinds:
        pair = [found[f"{kind} {number}"]["results"] for number in (1, 2)]
        results[kind] = {"steps": len(pair[0]), "same_bits": bool(pair[0]) and pair[0] == pair[1]}
    states = sorted({entry["state"] for entry in found.values()})
    longest = max(entry["seconds"] for entry in found.values())
    return {"state": ", ".join(states), "limit": seconds, "seconds": longest, "results": results}


def measure(options: argparse.Namespace) -> None:
    """Runs all parts, or those asked for."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        options.work, site = pathlib.Path(folder), pathlib.Path(folder) / "site"
        wheels = unpack_wheels(options.wheels, site)
        sys.path.append(str(site))
        importlib.invalidate_caches()
        absent = missing((*NEEDED, *WANTED))
        say(f"not there: {', '.join(absent) or 'nothing'}; from wheels: {', '.join(wheels) or '-'}")
        if unusable := missing(NEEDED):
            sys.exit(f"error: {', '.join(unusable)}: not there; see benchmarks/wheels.sh")
        head = {"small": options.small, "minutes": options.minutes}
        head |= {"missing": absent, "wheels": wheels}
        record = Record(options.out, head, keep=options.parts is not None)
        try:
            record.save()
        except OSError as error:
            sys.exit(f"error: --out={options.out}: {error.strerror}")
        everything = parts(read_sizes(options.small))
        wanted = options.parts or [part.name.split()[0] for part in everything]
        chosen = [part for part in everything if part.name.split()[0] in wanted]
        scale = 60 * options.minutes / sum(part.share for part in chosen)
        due = begun
        for part in chosen:
            due += part.share * scale
            needs = {"torch_steps": ("torch",), "torch_autoattack": ("torch", "torchattacks")}
            if lacking := missing(needs.get(part.name, ())):
                record.write(part.name, {"state": f"no {', '.join(lacking)}", "results": {}})
                continue
            left = max(due - time.monotonic(), 1.0)
            say(f"{part.name}: at most {left:.0f} s")
            if part.name == "bits":
                record.write(part.name, run_bits(part, left, options, site))
            else:
                env = environment(site, part.module, small=options.small)
                run(part, left, options, env, functools.partial(record.write, part.name))
            entry = record.content["parts"][part.name]
            say(f"{part.name}: {entry['state']}, {entry['seconds']:.0f} s {entry.get('error', '')}")
            if any(NO_ACCELERATOR in line for line in entry.get("error", ())):
                sys.exit(f"error: {NO_ACCELERATOR}; nothing else is measured")
        if options.logs:
            shutil.copytree(
                options.work,
                options.logs,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("site", "*.npz"),
            )


def main() -> None:
    """Measures, or prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="file of results, JSON")
    parser.add_argument("--table", type=pathlib.Path, help="print this file's numbers and end")
    parser.add_argument("--small", action="store_true", help="a dry run with tiny sizes")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--parts", nargs="+", help="first words of the parts to run")
    parser.add_argument("--wheels", type=pathlib.Path, default=ROOT / ".wheels")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for what the parts print")
    options = parser.parse_args()
    if options.table:
        from benchmarks.accelerator_table import table

        print(table(json.loads(options.table.read_text())))
    elif options.out:
        known = {part.name.split()[0] for part in parts(read_sizes(options.small))}
        if unknown := sorted(set(options.parts or ()) - known):
            parser.error(f"--parts {' '.join(unknown)}: allowed are {', '.join(sorted(known))}")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _end)
        measure(options)
    else:
        parser.error("--out=FILE or --table=FILE is needed")


if __name__ == "__main__":
    main()
