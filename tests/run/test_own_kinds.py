"""Things of a user's own that are of the wrong kind are errors in one line."""

import sys
import types

import pytest
import runs

from harp_jax.config.sections import ConfigError
from harp_jax.run import experiment

MODULE = """
from __future__ import annotations
import dataclasses
import flax.linen as nn
from harp_jax.losses import Loss, pgd

NUMBER = 3
class Plain: pass
def function(*arguments): return None
def five(num_classes): return 5
def raising(num_classes): raise KeyError("inside")
def without(): return nn.Dense(3)

@dataclasses.dataclass(frozen=True)
class NoLoss:
    n: int = 3

@dataclasses.dataclass(frozen=True)
class NoRadius:
    n: int = 3
    def __call__(self, logits_fn, images, labels, key):
        return images

@dataclasses.dataclass(frozen=True)
class Taxi(NoRadius):
    epsilon: float = 0.1
    norm: str = "l1"

@dataclasses.dataclass(frozen=True)
class Text(Loss):
    kind: str = "a"
    n: int = 3
    def __call__(self, forward, clean, adversarial, labels):
        logits = forward(adversarial)
        return pgd(logits, labels), logits

@dataclasses.dataclass(frozen=True)
class Raising(Loss):
    n: int = 3
    def __post_init__(self):
        raise TypeError("says no")

@dataclasses.dataclass
class Thawed:
    n: int = 3

@dataclasses.dataclass(frozen=True)
class Unreadable(Loss):
    n: Nowhere = 3

class KeyErrors(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=True):
        if not train:
            raise KeyError("no weights")
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))

class Never(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=True):
        raise KeyError("never")

class Seven(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(7)(images.reshape(len(images), -1))

class Red(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        raise RuntimeError("red" + chr(10) + chr(27) + "[31m")

class First(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))[:1]

class Whole(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1)).astype(int)

class Bare(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        weights = self.param("weights", nn.initializers.ones, (64, self.num_classes))
        return images.reshape(len(images), -1) @ weights

class Dropped(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        kept = nn.Dropout(0.5, deterministic=not train)(images)
        return nn.Dense(self.num_classes)(kept.reshape(len(images), -1))

class Alone(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(images)
        return nn.Dense(self.num_classes)(x.reshape(len(images), -1))

class Counting(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        steps = self.variable("state", "steps", lambda: 0)
        if train:
            steps.value += 1
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))

class Dotted(nn.Module):
    num_classes: int
    name_of_layer: str = "block1.dense"
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes, name=self.name_of_layer)(images.reshape(len(images), -1))

class Half(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        return nn.Dense(self.num_classes, param_dtype="bfloat16", name="half")(x)

class Boxed(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        init = nn.with_partitioning(nn.initializers.ones, (None, None))
        x = images.reshape(len(images), -1)
        return nn.Dense(self.num_classes, kernel_init=init, name="boxed")(x)

class Twice(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        layer = nn.Dense(64, name="again")
        return nn.Dense(self.num_classes)(layer(layer(images.reshape(len(images), -1))))

class Narrow(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))

class NoTrain(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, images):
        return nn.Dense(self.num_classes)(images.reshape(len(images), -1))
"""

BAD = [
    ({"loss": "kinds_of_mine:function"}, "loss='kinds_of_mine:function': is <function"),
    ({"loss": "kinds_of_mine:NUMBER"}, "loss='kinds_of_mine:NUMBER': is 3; allowed are"),
    ({"finetune.loss": "kinds_of_mine:NoLoss"}, "finetune.loss='kinds_of_mine:NoLoss': is <class"),
    ({"loss": "kinds_of_mine:Raising"}, "own.Raising={}: cannot be built (TypeError: says no)"),
    ({"loss": "kinds_of_mine:Thawed"}, "allowed are frozen dataclasses that extend Loss"),
    ({"loss": "kinds_of_mine:Unreadable"}, "types of Unreadable cannot be read (NameError: "),
    ({"prune.method": "kinds_of_mine:Text"}, "allowed are frozen dataclasses that extend Method"),
    ({"model": "kinds_of_mine:NUMBER"}, "model='kinds_of_mine:NUMBER': is 3; allowed are"),
    ({"model": "kinds_of_mine:five"}, "gives 5; allowed are functions of `num_classes`"),
    ({"model": "kinds_of_mine:raising"}, "cannot be built (KeyError: 'inside'); allowed are"),
    ({"model": "kinds_of_mine:without"}, "cannot be built (TypeError: "),
    ({"model": "kinds_of_mine:Bare"}, "has no layer to prune; allowed are networks of nn.Conv"),
    ({"model": "kinds_of_mine:Dropped"}, "fails with train=True (InvalidRngError: Dropout_0"),
    ({"model": "kinds_of_mine:Counting"}, "change nothing but 'batch_stats'"),
    (
        {"model": "kinds_of_mine:Alone", "devices": 2},
        "BatchNorm 'norm' has axis_name=None, on 2 devices; allowed are networks that take",
    ),
    (
        {"model": "kinds_of_mine:Dotted"},
        "has the name 'block1.dense' of a layer or array; allowed are names without '.' and '/'",
    ),
    (
        {"model": "kinds_of_mine:Half"},
        "params/half/bias is of bfloat16; allowed are arrays of float32",
    ),
    ({"model": "kinds_of_mine:Boxed"}, "allowed are"),
    ({"model": "kinds_of_mine:Twice"}, "layer 'again' is called twice; allowed are layers called"),
    (
        {"model": "kinds_of_mine:Narrow", "prune.granularity": "channel"},
        "granularity='channel': has no channels that layers read one by one; allowed is 'weight'",
    ),
    ({"model": "kinds_of_mine:Seven"}, "gives [(1, 7)] for an image; allowed is [(1, 10)]"),
    ({"model": "kinds_of_mine:Red"}, "cannot take images of (8, 8, 1) (RuntimeError: red ?[31m)"),
    ({"model": "kinds_of_mine:First"}, "gives [(1, 10)] for two images; allowed is [(2, 10)]"),
    ({"model": "kinds_of_mine:Whole"}, "gives logits of int32; allowed are real numbers"),
    ({"model": "kinds_of_mine:NoTrain"}, "called with (images, train=False)"),
    ({"model": "kinds_of_mine:KeyErrors"}, "KeyError: 'no weights'"),
    ({"model": "kinds_of_mine:Never"}, "cannot take images of (8, 8, 1) (KeyError: 'never')"),
    ({"evaluate.attacks.mine": {"type": "kinds_of_mine:NoLoss"}}, "with __call__(logits_fn, "),
    ({"evaluate.attacks.mine": {"type": "kinds_of_mine:Thawed"}}, "allowed are frozen dataclasses"),
    ({"evaluate.attacks.mine": {"type": "kinds_of_mine:NoRadius"}}, "attacks with an epsilon, in"),
    ({"evaluate.attacks.mine": {"type": "kinds_of_mine:Taxi"}}, "in the norm linf or l2"),
    (
        {
            "evaluate.attacks.natural": {"type": "FGSM", "epsilon": 0.1},
            "evaluate.run": ("natural",),
        },
        "evaluate.run='natural': allowed are other names",
    ),
    ({"own.Texxt": {"n": 2}}, "own.Texxt={'n': 2}: allowed are none, which the losses"),
    (
        {"loss": "kinds_of_mine:Text", "own.Texxt": {"n": 2}},
        "own.Texxt={'n': 2}: allowed are Text, which the losses",
    ),
    ({"evaluate.attacks.mine": 5}, "evaluate.attacks.mine=5: allowed are sections"),
    ({"evaluate.attacks.mine": {"type": "kinds_of_mine:Plain"}}, "allowed are frozen dataclasses"),
    ({"loss": "kinds_of_mine:Text", "own.Text": 4}, "own.Text=4: allowed are sections"),
    ({"loss": "kinds_of_mine:Text", "own.Text": {"n": 2.5}}, "own.Text.n=2.5: allowed are whole"),
    ({"loss": "kinds_of_mine:Text", "own.Text": {"kind": 3}}, "own.Text.kind=3: allowed are names"),
]


@pytest.fixture(autouse=True)
def module(monkeypatch):
    made = types.ModuleType("kinds_of_mine")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    exec(compile(MODULE, made.__name__, "exec"), made.__dict__)


@pytest.mark.parametrize(("fields", "text"), BAD, ids=[text for _, text in BAD])
def test_the_wrong_kind_is_one_line(fields, text, tmp_path):
    config = runs.digits()
    for field, value in fields.items():
        *sections, name = field.split(".")
        section = config
        for each in sections:
            section = section[each]
        with section.unlocked():
            section[name] = value
    with pytest.raises(ValueError, match="allowed") as caught:
        experiment.run(config, tmp_path / "run")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_fields_of_text_and_whole_numbers_are_told_apart_in_modules_with_late_annotations():
    config = runs.digits(loss="kinds_of_mine:Text")
    with config.own.unlocked():
        config.own.Text = {"kind": "b", "n": 2}
    from harp_jax.config.sections import loss

    assert (loss(config, "pretrain").kind, loss(config, "pretrain").n) == ("b", 2)
    assert issubclass(ConfigError, ValueError)


def test_one_device_needs_no_axis(tmp_path):
    config = runs.digits(model="kinds_of_mine:Alone", stages=("pretrain",))
    config.pretrain.epochs, config.data.train_examples = 1, 64
    experiment.run(config, tmp_path / "run")
    assert (tmp_path / "run" / "pretrain" / "result").exists()
