"""Random configurations: each trains a step, or is refused before anything compiles.

python -m tests.config_fuzz --draws=1000 --seed=0

The values come from the table of fields (`config.rules`): some that it allows, and some of other
types, out of range or misspelt. A new field is drawn by itself. Fields that cost much (the network,
the images) are drawn from small ones. A draw is made in Python, as a file makes it, or read back
from the config.json of a workdir.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import Any, get_type_hints
from unittest import mock

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
        " --xla_cpu_parallel_codegen_split_count=1"
    )

import flax.linen as nn
import hypothesis
import jax
import numpy as np
from hypothesis import strategies as st
from ml_collections import ConfigDict

from harp_jax import config as harp
from harp_jax import parallel, settings
from harp_jax.attacks import ATTACKS
from harp_jax.config import of_workdir
from harp_jax.config.kinds import Choice, Flag, Number, Rule, Several, Text, Whole
from harp_jax.config.rules import OPEN, RULES, SETTINGS
from harp_jax.data import train_batches
from harp_jax.run import experiment
from harp_jax.training import loop
from harp_jax.training.stages import STAGES
from harp_jax.workdir import identity

MODULE = __spec__.name
TRAINED, REFUSED, ELSE = "trained a step", "refused before anything compiles", "anything else"
FIELDS = RULES | SETTINGS
# Every refusal begins with a field and its value, and says what is allowed, in one of three ways.
FORM = re.compile(r"[\w.]+=.+: .*\b(allowed (are|is)|must be|expected)\b.*|[\w.]+: is missing; .*")
WRONG = (
    *(None, True, False, -1, 0, 1, 2, 8, 127, 10**12, 10**400, 0.5, 1.0, -0.1, 1e-300, 1e300),
    *(math.nan, math.inf, -math.inf, "", "text", "a:b", "os:path", "0.1", "nul\0", "é", b"bytes"),
    *((), [], (None,), (0.5,), (127.0,), ("prune",), "prune", {}, {"a": 1}, [[1]], object),
    *(np.int64(2), np.float32(0.5), np.float64(math.nan), np.bool_(True), np.zeros(2)),
)


class Missing:
    """Stands for the value of a field that is left out."""


class Net(nn.Module):
    """A network that compiles fast: a convolution, BatchNorm and a dense layer."""

    num_classes: int
    axis_name: str | None = None
    normalization: Any = None
    dtype: Any = None

    @nn.compact
    def __call__(self, images, train=False):
        if self.normalization is not None:
            mean, std = (np.asarray(numbers, np.float32) for numbers in self.normalization)
            images = (images - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)
        x = nn.Conv(4, (3, 3), strides=(2, 2), dtype=self.dtype, name="conv")(images)
        x = nn.BatchNorm(not train, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x)
        x = nn.relu(x).reshape(len(x), -1)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="dense")(x)
        return logits.astype(np.float32)


@functools.cache
def folder() -> pathlib.Path:
    """A temporary folder with grey and coloured images of 8x8 pixels."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="config_fuzz"))
    random = np.random.default_rng(0)
    for name, channels in (("grey", 1), ("colour", 3)):
        arrays = {}
        for split, count in (("train", 30), ("test", 12)):
            arrays[f"x_{split}"] = random.integers(0, 256, (count, 8, 8, channels), np.uint8)
            arrays[f"y_{split}"] = np.arange(count) % 3
        np.savez(path / f"{name}.npz", **arrays)
    return path


def base() -> ConfigDict:
    """The configuration whose fields are changed; its run is small."""
    config = harp.default()
    config.model = f"{MODULE}:Net"
    config.compilation_cache = ""
    config.devices = 1
    config.batch_size = config.evaluate.batch_size = 4
    config.data.name = f"npz:{folder()}/grey.npz"
    config.data.validation_examples = 6
    config.data.crop_padding = 1
    config.attack.epsilon, config.attack.step_size = 0.1, 0.05
    config.prune.target = 0.2
    return config


def small() -> dict[str, tuple[Any, ...]]:
    """Allowed values of the fields that cost much or name files, by field."""
    sets = [f"npz:{folder()}/{name}.npz" for name in ("grey", "colour")]
    return {
        "model": (f"{MODULE}:Net", "tiny"),
        "data.name": (*sets, "digits", "npz:none.npz", "no_such_set", "folder:none", "npz:", "x:y"),
        "data.directory": (str(folder()), "/nowhere", "gs"),
        "data.image_size": (8, 16),
        "data.pad_to": (7, 8, 12),
        "data.workers": (0, 1),
        "compilation_cache": ("",),
        "prune.source": ("", "nowhere", str(folder())),
        "finetune.source": ("", "nowhere", str(folder())),
        "prune.strategy": ("uniform", "erk", "lamp", "global", "json:none", "checkpoint:none"),
        "evaluate.run": ((), ("fgsm",), ("pgd10", "fgsm"), ("pgd11",)),
        "batch_size": (2, 4, 8, 25, 2**31 - 1),
        "data.train_examples": (4, 8, None, 10**6),
    }


def inside(field: str, rule: Rule) -> st.SearchStrategy[Any]:
    """Draws values that a rule allows."""
    if field in small():
        return st.sampled_from(small()[field])
    unset = st.none() if rule.optional else st.nothing()
    if isinstance(rule, Whole):
        low = max(rule.low, -1)
        return st.sampled_from([low, low + 1, low + 2, rule.high]) | unset
    if isinstance(rule, Number):
        ends = [rule.low, rule.high, settings.SMALLEST, rule.low + 0.01, 0.1, 0.5, 0.99, 1.0, 6.0]
        return st.sampled_from([end for end in ends if rule.accepts(end)]) | unset
    if isinstance(rule, Choice):
        return st.sampled_from(sorted(rule.names)) | unset
    if isinstance(rule, Several):
        return st.lists(inside("", rule.each), min_size=not rule.empty, max_size=3).map(tuple)
    return st.booleans() if isinstance(rule, Flag) else st.just("text")


def outside(rule: Rule) -> st.SearchStrategy[Any]:
    """Draws values of any type, those just outside the range, and misspelt names."""
    near: list[Any] = []
    if isinstance(rule, Whole | Number):
        near = [rule.low, rule.low - 1, rule.low - 1e-9, rule.high, rule.high + 1, rule.high * 255]
    if isinstance(rule, Choice):
        near = [name[:-1] for name in rule.names] + [name.upper() for name in rule.names]
    if isinstance(rule, Several):
        return outside(rule.each).map(lambda value: (value,)) | st.sampled_from(WRONG)
    return st.sampled_from([*near, *near, *WRONG])


def value(field: str, rule: Rule) -> st.SearchStrategy[Any]:
    """Draws a value, three times of four one that is allowed."""
    return st.sampled_from([True, True, True, False]).flatmap(
        lambda good: inside(field, rule) if good else outside(rule)
    )


@st.composite
def attack(draw: st.DrawFn) -> Any:
    """Draws a section of an attack of the evaluation."""
    kind = draw(st.sampled_from([*ATTACKS, "PDG", None, 3]))
    section: dict[str, Any] = {"type": kind, "epsilon": 0.1, "step_size": 0.05}
    types = get_type_hints(ATTACKS[kind]) if kind in ATTACKS else {}
    names = [field.name for field in dataclasses.fields(ATTACKS[kind])] if types else []
    if "step_size" not in names:
        del section["step_size"]
    rules = {int: Whole(1, 5), float: Number(), bool: Flag(), str: Choice(("linf", "l2", "ce"))}
    for name in draw(st.lists(st.sampled_from([*names, "stepps"]), max_size=2)):
        rule = rules.get(types.get(name, int), Text(""))
        section[name] = draw(value("", rule))
    return ConfigDict(section)


@st.composite
def draws(draw: st.DrawFn) -> tuple[dict[str, Any], str, str]:
    """Draws changes of the base by field, the stage that trains, and where they come from."""
    changes: dict[str, Any] = {}
    for field in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=4, unique=True)):
        changes[field] = draw(value(field, FIELDS[field]))
    kind = draw(st.sampled_from([*["plain"] * 8, "missing", "unknown", "section", "attack"]))
    field = draw(st.sampled_from([*FIELDS, *OPEN, "prune", "data"]))
    if kind == "missing":
        changes[field] = Missing
    elif kind == "unknown":
        changes[f"{field[:-1]}"] = draw(st.sampled_from(WRONG))
    elif kind == "section":
        section = draw(st.sampled_from([*OPEN, "prune", "data", "own.X", "evaluate.attacks.x"]))
        changes[section] = draw(st.sampled_from(WRONG))
    elif kind == "attack":
        changes["evaluate.attacks.mine"] = draw(attack())
    stage = draw(st.sampled_from(STAGES))
    return changes, stage, draw(st.sampled_from(["Python", "Python", "Python", "config.json"]))


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


def outcome(draw: tuple[dict[str, Any], str, str], number: int) -> tuple[str, str]:
    """Runs a draw; returns one of the three outcomes, and the line or the traceback."""
    changes, stage, source = draw
    workdir = folder() / str(number)
    step: OneStep | None = None
    try:
        config = recorded(changes, workdir) if source == "config.json" else changed(changes)
        harp.validate(config)
        step = OneStep(config, stage)
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
        progress: Whether to print the counts on stderr as they come.

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
    def each(draw: tuple[dict[str, Any], str, str]) -> None:
        if sum(counts.values()) == count or repr(draw) in seen:
            return
        seen.add(repr(draw))
        kind, text = outcome(draw, sum(counts.values()))
        counts[kind] += 1
        if progress:
            print(f"\r{dict(counts)}", end="", file=sys.stderr)
        if kind == ELSE:
            wrong.append(f"{draw}\n{text}")

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
    for text in wrong:
        print(text, "\n")
    print(f"{sum(counts.values())} draws, seed {options.seed}:")
    for kind, number in counts.items():
        print(f"  {number:>5} {kind}")
    print(f"  {time.monotonic() - started:.0f} s")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
