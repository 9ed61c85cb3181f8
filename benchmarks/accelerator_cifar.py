"""The part of `benchmarks.accelerator` that trains: CIFAR-10's short experiments of the paper.

    python -m benchmarks.accelerator_cifar cifar --network=resnet18 --cifar=FILE --runs=FOLDER

It starts `harp_jax.main` in a workdir of its own in FOLDER, twice: PGD-10 of the dense and the
finetuned network comes before AutoAttack, which takes longer. What the workdir holds is printed as
it comes. The same command goes on with a workdir that was left in the middle.
"""

import argparse
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from etils import epath

from benchmarks import accelerator_config
from benchmarks.accelerator_parts import Result, need_accelerator, run
from benchmarks.modes import Sizes
from harp_jax.workdir import read_metrics
from harp_jax.workdir.files import METRICS, STAGES
from harp_jax.workdir.records import read_table

ATTACKS = ("pgd10", "autoattack")
SECONDS = 2.0  # between two looks at the workdir
SHAPE = 32, 32, 3
FEW = 320, 16  # training and test images of a dry run


def command(options: argparse.Namespace, attacks: tuple[str, ...]) -> list[str]:
    """Returns the command of the run, with some attacks of its evaluation.

    Args:
        options: The command line: network, cifar, runs and small.
        attacks: Names of attacks.
    """
    data = few_images(options.cifar, options.runs) if options.small else options.cifar
    stages = (*STAGES, "evaluate", *["report"] * (attacks == ATTACKS))
    return [
        *(sys.executable, "-m", "harp_jax.main"),
        f"--config={accelerator_config.__file__}:{name_of(options)}",
        f"--workdir={workdir_of(options)}",
        f"--config.data.name=npz:{data.resolve()}",
        f"--config.evaluate.run={attacks}",
        f"--config.stages={stages}",
    ]


def name_of(options: argparse.Namespace) -> str:
    """Returns the name of the network's configuration; a dry run has another."""
    return options.network + accelerator_config.SMALL * options.small


def workdir_of(options: argparse.Namespace) -> pathlib.Path:
    """Returns the folder of the network's run."""
    return options.runs.resolve() / name_of(options)


def few_images(file: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes the first images of a file for a dry run, unless they are there; returns their file.

    Args:
        file: NPZ file of CIFAR-10, as for 'npz:FILE'.
        folder: Folder of the new one.
    """
    import numpy as np

    from harp_jax import data

    path = folder / "few_images.npz"
    if not path.exists():
        found = data.load(f"npz:{file.resolve()}", seed=0, validation_examples=1)
        named = {}
        for name, split, count in zip(
            ("train", "test"), (found.train, found.test), FEW, strict=True
        ):
            few = split.take(slice(count))
            named |= {f"{name}_images": few.images, f"{name}_labels": few.labels}
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(path, **named)
    return path


def cifar(_: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Trains, prunes and finetunes a network, and measures it: one result for each stage.

    Yields:
        'epochs' done, 'seconds' of training and 'validation' of the last epoch; as soon as they are
        measured 'natural', 'pgd10', 'autoattack', the number of test 'images' and 'sparsity'.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)  # the run gets it too: it saves, and ends
    last: dict[str, Result] = {}
    for attacks in (ATTACKS[:1], ATTACKS):
        child = subprocess.Popen(command(options, attacks), stdout=sys.stderr)
        code = None
        while code is None:
            time.sleep(SECONDS)
            code = child.poll()  # what it wrote last is looked at once more
            for row in rows(epath.Path(workdir_of(options))):
                if last.get(row["name"]) != row:
                    last[row["name"]] = row
                    yield row
        if code:
            sys.exit(code if code > 0 else 1)


def check(_: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Ends the process with a line that says why a run would fail, before others take their time.

    Yields:
        Nothing.
    """
    from harp_jax import data

    need_accelerator(options)
    try:
        options.runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.runs):
            pass
    except OSError as error:
        sys.exit(f"--runs={options.runs}: {error.strerror}")
    try:
        found = data.load(f"npz:{options.cifar.resolve()}", seed=0, validation_examples=1)
    except data.DataError as error:
        sys.exit(" ".join(f"--cifar: {error}".split()))
    shape = found.test.images.shape[1:]
    if shape != SHAPE:
        sys.exit(f"--cifar={options.cifar}: holds images of {shape}; CIFAR-10's are of {SHAPE}")
    yield from ()


def rows(workdir: epath.Path) -> Iterator[Result]:
    """Yields what a workdir holds of each stage so far."""
    results = read_table(workdir) or {"rows": []}
    measured = {row["stage"]: row for row in results["rows"]}
    for stage in STAGES:
        epochs = read_metrics(workdir / stage / METRICS)
        if not epochs:
            continue
        row: Result = {
            "name": stage,
            "epochs": len(epochs),
            "seconds": sum(epoch["seconds"] for epoch in epochs),
            "validation": epochs[-1]["validation"],
        }
        if stage in measured:
            found = measured[stage]
            row |= {name: found[name] for name in ("natural", "images", "sparsity")}
            row |= found["robust"]
        yield row


if __name__ == "__main__":
    run({"cifar": cifar, "check": check})
