"""Methods and losses of one's own under the options of the prune stage."""

import sys
import types

import pytest
import runs

from harp_jax import config as harp
from harp_jax.config.sections import ConfigError, method

MODULE = """
import dataclasses
from harp_jax.losses import Loss
from harp_jax.methods import PLAIN, Harp, Method

@dataclasses.dataclass(frozen=True)
class Weights(Method):
    epochs: int = 5
    alpha: float = 0.5
    trains = frozenset({"scores", "norm"})
    granularities = ("weight",)

class Masking(Weights):
    trains = frozenset({"scores", "rates", "norm"})

    def masking(self, setting, variables):
        return PLAIN

class Ascending(Weights):
    def ascend(self, setting):
        return lambda scores, gradient: scores

@dataclasses.dataclass(frozen=True)
class Twice(Loss):
    def __call__(self, forward, clean, adversarial, labels):
        raise NotImplementedError

    @property
    def updates_per_batch(self):
        return 2
"""


@pytest.fixture(autouse=True)
def own(monkeypatch):
    module = types.ModuleType("own")
    monkeypatch.setitem(sys.modules, "own", module)
    exec(MODULE, module.__dict__)


def test_its_settings_are_its_own_also_where_the_prune_stage_has_such_a_name():
    config = runs.digits(**{"prune.method": "own:Weights", "prune.epochs": 20})
    config.own.Weights = {"epochs": 3}
    found = method(config)
    assert (found.epochs, found.alpha) == (3, 0.5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"prune.method": "own:Weights", "prune.granularity": "channel", "prune.joint": True},
            "prune.granularity='channel': allowed are weight with the method",
        ),
        (
            {"prune.method": "own:Masking", "prune.live": True},
            "prune.live=True: allowed are False with the method 'own:Masking', which has a masking",
        ),
        (
            {"prune.method": "own:Masking", "prune.window": 0.5},
            "prune.window=0.5: allowed are 0 with the method 'own:Masking', which has a masking",
        ),
        (
            {"prune.method": "own:Ascending", "prune.loss": "free", "prune.joint": True},
            "prune.loss='free': allowed are other losses with the method 'own:Ascending'",
        ),
        ({"finetune.loss": "own:Twice"}, "finetune.loss='own:Twice': allowed are losses with"),
    ],
)
def test_what_would_be_passed_over_in_silence_is_refused(fields, said):
    with pytest.raises(ConfigError) as caught:
        harp.validate(runs.digits(**fields))
    assert said in str(caught.value)


def test_what_goes_together_is_allowed():
    for fields in (
        {"prune.method": "own:Weights", "prune.live": True, "prune.loss": "free"},
        {"prune.method": "own:Ascending", "prune.joint": True},
    ):
        harp.validate(runs.digits(**fields))
