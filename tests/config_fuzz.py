"""Random configurations: each trains a step, or is refused before anything compiles.

python -m tests.config_fuzz --draws=1000 --seed=0

A draw (`fuzz_draws`) is made in Python, as a file makes it, read back from the config.json of a
workdir, or given by flags of the command line.
"""

import argparse
import collections
import contextlib
import functools
import io
import json
import logging
import math
import os
import pathlib
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).parent))
if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
        " --xla_cpu_parallel_codegen_split_count=1"
    )

import hypothesis
import jax
from absl.testing import flagsaver
from fuzz_draws import Draw, Missing, base, base_fields, draws, folder
from ml_collections import ConfigDict

from harp_jax import config as harp
from harp_jax import main as command_line
from harp_jax import parallel
from harp_jax.config import of_workdir
from harp_jax.data import train_batches
from harp_jax.run import experiment
from harp_jax.training import loop
from harp_jax.training.stages import STAGES
from harp_jax.workdir import identity

TRAINED, REFUSED, ELSE = "trained a step", "refused before anything compiles", "anything else"
# Every refusal begins with a field and its value, and says what is allowed, in one of three ways.
FORM = re.compile(r"[\w.]+=.+: .*\b(allowed (are|is)|must be|expected)\b.*|[\w.]+: is missing; .*")


def changed(changes: dict[str, Any]) -> ConfigDict:
    """Returns the base with changes, as a file may make them."""
    config = base()
    for field, new in changes.items():
        section, _, name = field.rpartition(".")
        inner: Any = config
        for part in filter(None, section.split(".")):
            inner = inner[part] if isinstance(inner, ConfigDict) and part in inner else None
        if not isinstance(inner, ConfigDict) or not name:
            continue
        with inner.unlocked(), inner.ignore_type():
            if new is Missing:
                del inner[name]
                continue
            with contextlib.suppress(OverflowError, TypeError):  # where it is assigned, in a file
                inner[name] = new
    return config


def recorded(changes: dict[str, Any], workdir: pathlib.Path) -> ConfigDict:
    """Returns the configuration of a workdir whose config.json has the changes, where it can."""
    flat = dict(_flat(base().to_dict()))
    for field, new in changes.items():
        # What JSON cannot hold stays as it is: left out, it would be the default, a large set.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            flat[field] = json.loads(json.dumps(new))
    fields: dict[str, Any] = {}
    for field, new in flat.items():
        inner, parts = fields, field.split(".")
        for part in parts[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                break
        else:
            inner[parts[-1]] = new
    workdir.mkdir()
    claim = {"config": fields, "format": identity.FORMAT}
    (workdir / "config.json").write_text(json.dumps(claim))
    config = of_workdir.get_config(str(workdir))
    (workdir / "config.json").unlink()
    return config


def given(changes: dict[str, Any], workdir: pathlib.Path) -> ConfigDict:
    """Returns the configuration of a command line whose flags make the changes.

    Raises:
        ValueError: With the line that the command ends with, if it refuses its flags.
    """
    file, errors = folder() / "base.py", io.StringIO()
    file.write_text(
        "from harp_jax import config as harp\n\n\ndef get_config():\n"
        "    config = harp.default()\n"
        f"    config.update_from_flattened_dict({base_fields()!r})\n"
        "    return config\n"
    )
    overrides = [f"--config.{name}={new}" for name, new in changes.items() if new is not Missing]
    arguments = ["harp_jax", f"--config={file}", f"--workdir={workdir}", *overrides]
    with (
        flagsaver.flagsaver(),
        mock.patch.dict(sys.modules),  # each file is loaded as the same module
        mock.patch.object(sys, "argv", arguments),  # where overrides are looked for
        warnings.catch_warnings(),
        contextlib.redirect_stderr(errors),
    ):
        warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
        sys.modules.pop("config_config", None)
        try:
            command_line._parse(arguments)
        except SystemExit as end:
            raise ValueError(errors.getvalue().strip().removeprefix("error: ")) from end
        return command_line._CONFIG.value


SOURCES = {"Python": lambda changes, _: changed(changes), "config.json": recorded, "flags": given}


def _flat(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, leaf in tree.items():
        if isinstance(leaf, dict) and leaf:
            yield from _flat(leaf, f"{above}{name}.")
        else:
            yield above + name, leaf


class _Stepped(Exception):  # noqa: N818
    """Raised after the one step, to end the run."""


class OneStep:
    """Stands for the loop: takes one step of the chosen stage; earlier ones are handed on as is."""

    def __init__(self, config: ConfigDict, stage: str):
        asked = [each for each in STAGES if each in config.stages]
        self.after = STAGES.index(stage) if not asked or stage in asked else -1
        self.begun = False

    def fit(self, stage, plan, first, programs, dataset, directory) -> loop.Outcome:
        """See `loop.fit`."""
        if STAGES.index(stage.name) < self.after:
            return loop.Outcome(dict(first.variables), epoch=0, reached=True)
        batches = train_batches(
            dataset.train,
            seed=stage.seed,
            epoch=0,
            batch_size=stage.batch_size,
            devices=len(plan.devices),
        )
        with contextlib.closing(batches):
            state = programs.train_step(
                parallel.replicate(first, plan.devices), next(iter(batches))
            )
        sums = parallel.to_host(state.sums)
        if not math.isfinite(sums["loss"]) or not sums["examples"]:
            raise ArithmeticError(f"the step gives {sums}")
        raise _Stepped

    def train(self, train, run, name) -> None:
        """See `_Experiment.train`; what follows may compile."""
        self.begun = True
        train(run, name)

    def end(self, *_) -> None:
        """Stands for the evaluation and the report, of stages that train nothing."""
        raise _Stepped


def outcome(draw: Draw, number: int) -> tuple[str, str]:
    """Runs a draw; returns one of the three outcomes, and the line or the traceback."""
    workdir = folder() / str(number)
    step: OneStep | None = None
    try:
        config = SOURCES[draw.source](draw.changes, workdir)
        harp.validate(config)
        step = OneStep(config, draw.stage)
        train = experiment._Experiment.train
        one = functools.partial(step.train, train)
        with (
            mock.patch.object(loop, "fit", step.fit),
            mock.patch.object(experiment._Experiment, "train", lambda run, name: one(run, name)),
            mock.patch.object(experiment._Experiment, "evaluate", step.end),
            mock.patch.object(experiment._Experiment, "report", step.end),
        ):
            experiment.run(config, workdir)
    except _Stepped:
        return TRAINED, ""
    except ValueError as error:
        text, match = str(error), FORM.fullmatch(str(error))
        if match and (step is None or not step.begun):
            return REFUSED, text
        return ELSE, f"{text}\n{traceback.format_exc()}"
    except Exception:
        return ELSE, traceback.format_exc()
    return TRAINED, ""  # stages without any training


def fuzz(
    count: int, seed: int, progress: bool = False
) -> tuple[collections.Counter[str], list[str]]:
    """Runs draws.

    Args:
        count: Number of draws.
        seed: Seed of the draws.
        progress: Whether to print the counts on stderr, and what is neither, as they come.

    Returns:
        The number of draws by outcome, and a text for each that has the third one.
    """
    counts: collections.Counter[str] = collections.Counter({TRAINED: 0, REFUSED: 0, ELSE: 0})
    wrong: list[str] = []
    seen: set[str] = set()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=10 * count,  # some come twice
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(draws())
    def each(draw: Draw) -> None:
        if sum(counts.values()) == count or repr(draw) in seen:
            return
        seen.add(repr(draw))
        if len(seen) % 50 == 0:
            jax.clear_caches()  # a process may have 65,530 maps of memory
        kind, text = outcome(draw, sum(counts.values()))
        counts[kind] += 1
        if kind == ELSE:
            wrong.append(f"{draw}\n{text}")
        if progress and kind == ELSE:
            print(f"\n{wrong[-1]}\n", flush=True)
        if progress:
            print(f"\r{dict(counts)}", end="", file=sys.stderr)

    each()
    return counts, wrong


def main() -> None:
    """Prints the outcomes of many draws; ends with an error if one is neither."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="Number of draws.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draws.")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    jax.config.update("jax_compilation_cache_dir", str(folder() / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    started = time.monotonic()
    counts, wrong = fuzz(options.draws, options.seed, progress=True)
    print(f"\n{sum(counts.values())} draws, seed {options.seed}:")
    for kind, number in counts.items():
        print(f"  {number:>5} {kind}")
    print(f"  {time.monotonic() - started:.0f} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
