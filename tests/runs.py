"""Short runs on the 8x8 digits that several test modules look at."""

import contextlib
import fcntl
import functools
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from ml_collections import ConfigDict

from harp_jax import checkpoint, main, parallel
from harp_jax import config as harp
from harp_jax.run import experiment

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("pretrain", "prune", "finetune")
WITHOUT_REPORT = "--config.stages=('pretrain','prune','finetune','evaluate')"
STEPS_PER_EPOCH = 20  # (1797 - 359 test - 150 validation) // 64

# Programs of tests run for moments and compile for seconds. In one part each: cutting them up for
# several threads costs a tenth more, and the cores have other tests to run.
COMPILED_FAST = (
    "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # later versions end at flags that they do not know
    COMPILED_FAST += " --xla_cpu_use_fusion_emitters=false"

# One configuration for all short runs, so that they share compiled programs.
FIELDS = {
    "pretrain.epochs": 2,
    "prune.epochs": 3,
    "finetune.epochs": 1,
    "attack.steps": 3,
    "evaluate.run": ("fgsm", "pgd10"),
    "evaluate.attacks.pgd10.steps": 3,  # as in validation: compiled once
}
SHORT = tuple(f"--config.{field}={value}" for field, value in FIELDS.items())


def digits(**fields: object) -> ConfigDict:
    """The configuration of configs/digits.py with some fields changed ('prune.epochs': 1)."""
    config = harp.load("digits")
    config.devices = 1
    config.compilation_cache = ""
    config.update_from_flattened_dict(fields)
    return config


def environment(**variables: str) -> dict[str, str]:
    """The environment of a command: a user's, but compiled fast; it runs this checkout's code.

    Args:
        variables: Further ones.
    """
    users = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ours = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path, "XLA_FLAGS": COMPILED_FAST}
    return {**users, **ours, **variables}


def command(workdir: pathlib.Path | str, *arguments: str, config="configs/digits.py") -> list[str]:
    """A call of the command line."""
    program = [sys.executable, "-m", "harp_jax.main"]
    return [*program, f"--config={config}", f"--workdir={workdir}", *arguments]


def start(arguments: list[str], folder: pathlib.Path = ROOT) -> subprocess.Popen[str]:
    """Starts a command; `end` waits for it, so that several can run side by side."""
    return subprocess.Popen(
        arguments,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str], seconds: int = 600) -> subprocess.CompletedProcess[str]:
    """Waits for a command that was started; kills one that takes longer."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def call(arguments: list[str], seconds: int = 600) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return end(start(arguments), seconds)


def here(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, without the seconds that a process of its own imports for.

    Args:
        arguments: From `command`.
    """
    output, errors, log = io.StringIO(), io.StringIO(), logging.getLogger("harp_jax")
    level = log.level
    app.define_help_flags()  # once and for all
    with (
        pytest.MonkeyPatch.context() as patch,
        flagsaver.flagsaver(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        # ml_collections loads all configuration files as this module, in a way that will go.
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        patch.delitem(sys.modules, "config_config", raising=False)
        patch.setattr(sys, "argv", arguments[2:])
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
        patch.setattr(log, "handlers", log.handlers.copy())
        patch.setattr(log, "propagate", log.propagate)
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)
        with pytest.raises(SystemExit) as left:
            main.main()
    log.setLevel(level)
    return subprocess.CompletedProcess(
        arguments, int(left.value.code or 0), output.getvalue(), errors.getvalue()
    )


def refusal(config: ConfigDict, workdir: pathlib.Path) -> str:
    """The line with which a run refuses its configuration, before it makes a program."""

    def refuse(*_, **__):
        raise AssertionError("a program was built from bad input")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "parallel", refuse)
        with pytest.raises(ValueError, match=r"\S") as caught:
            experiment.run(config, workdir)
    text = str(caught.value)
    assert "\n" not in text
    return text


def shared(temporary: pathlib.Path) -> pathlib.Path:
    """The temporary folder of all processes that run the tests of a session together."""
    return temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary


@functools.cache
def cache_option(temporary: pathlib.Path) -> str:
    """The option that makes all runs of a session share their compiled programs."""
    return f"--config.compilation_cache={shared(temporary) / 'compiled'}"


@functools.cache
def finished(temporary: pathlib.Path) -> pathlib.Path:
    """The workdir of a short run of all stages, report included, on one device.

    Args:
        temporary: The session's temporary folder.

    Returns:
        The workdir; it is made once and only to be looked at.
    """
    workdir = shared(temporary) / "finished"
    with workdir.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held by whoever makes it
        if not (workdir / "report" / "index.html").exists():
            experiment.run(digits(**FIELDS), workdir)
    return workdir


def results(workdir: pathlib.Path) -> dict:
    """The table of a run, without its checksum: a test may write it back with changes."""
    found = json.loads((workdir / "results.json").read_text())
    found.pop("checksum", None)
    return found


def metrics(workdir: pathlib.Path, stage: str) -> list[dict]:
    """The rows of a stage without what depends on the clock, and the checksum of that."""
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    timings = ("seconds", "images_per_second", "data_wait", "checksum")
    return [{name: row[name] for name in row if name not in timings} for row in rows]


def differences(one: pathlib.Path, other: pathlib.Path, stages=STAGES) -> dict[str, float]:
    """Largest absolute difference of every array of every stage's network."""
    found = {}
    for stage in stages:
        trees = [checkpoint.load(workdir / stage) for workdir in (one, other)]
        for tree in trees:
            del tree["metadata"]
        for path, difference in jax.tree.leaves_with_path(
            jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *trees)
        ):
            found[stage + jax.tree_util.keystr(path)] = difference
    return found


def assert_identical(one: pathlib.Path, other: pathlib.Path, stages=STAGES) -> None:
    """Networks, records and results agree to the last bit."""
    different = {name: d for name, d in differences(one, other, stages).items() if d != 0.0}
    assert different == {}
    for stage in stages:
        assert metrics(one, stage) == metrics(other, stage)
    for row, same in zip(results(one)["rows"], results(other)["rows"], strict=True):
        assert {**row, "seconds": 0} == {**same, "seconds": 0}
