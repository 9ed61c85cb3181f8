"""Draws changes of a small configuration, for `config_fuzz`.

The values come from the table of fields (`config.rules`): some that it allows, and some of other
types, out of range or misspelt. A new field is drawn by itself. Fields that cost much (the network,
the images) are drawn from small ones.
"""

import dataclasses
import functools
import math
import pathlib
import tempfile
from typing import Any, NamedTuple, get_type_hints

import flax.linen as nn
import numpy as np
from hypothesis import strategies as st
from ml_collections import ConfigDict

from harp_jax import config as harp
from harp_jax import settings
from harp_jax.attacks import ATTACKS
from harp_jax.config.kinds import Choice, Flag, Number, Rule, Several, Text, Whole
from harp_jax.config.rules import OPEN, RULES, SETTINGS
from harp_jax.training.stages import STAGES

FIELDS = RULES | SETTINGS
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
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="config_fuzz")


def folder() -> pathlib.Path:
    """A folder that this process removes when it ends."""
    return pathlib.Path(_temporary().name)


@functools.cache
def images(name: str, channels: int) -> str:
    """A set of images of 8x8 pixels in the folder."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("test", 12)):
        arrays[f"x_{split}"] = random.integers(0, 256, (count, 8, 8, channels), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    np.savez(folder() / f"{name}.npz", **arrays)
    return f"npz:{folder()}/{name}.npz"


def base_fields() -> dict[str, Any]:
    """The fields that make a small run of the defaults."""
    return {
        "model": f"{__name__}:Net",
        "compilation_cache": "",
        "devices": 1,
        "batch_size": 4,
        "evaluate.batch_size": 4,
        "data.name": images("grey", 1),
        "data.validation_examples": 6,
        "data.crop_padding": 1,
        "attack.epsilon": 0.1,
        "attack.step_size": 0.05,
        "prune.target": 0.2,
    }


def base() -> ConfigDict:
    """The configuration whose fields are changed; its run is small."""
    config = harp.default()
    config.update_from_flattened_dict(base_fields())
    return config


def small() -> dict[str, tuple[Any, ...]]:
    """Allowed values of the fields that cost much or name files, by field."""
    sets = images("grey", 1), images("colour", 3)
    return {
        "model": (f"{__name__}:Net", "tiny"),
        "width": (0.5, 1, 2.0),
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


class Draw(NamedTuple):
    """A changed configuration.

    Attributes:
        changes: Values by field; `Missing` for one that is left out.
        stage: The stage that trains a step.
        source: Where the changes are made: in Python, in the config.json of a workdir, or by flags.
    """

    changes: dict[str, Any]
    stage: str
    source: str


@st.composite
def draws(draw: st.DrawFn) -> Draw:
    """Draws changes of the base, the stage that trains, and where they come from."""
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
    return Draw(changes, stage, draw(st.sampled_from(["Python", "Python", "config.json", "flags"])))
