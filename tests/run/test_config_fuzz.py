"""Random configurations: each trains a step or is refused; `tests.config_fuzz` runs many more."""

import config_fuzz
import fuzz_draws
import pytest

from harp_jax.config import validation
from harp_jax.config.rules import RULES, SETTINGS


# The type checks of the tests look at random items of a list, also while a value is drawn.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
def test_random_configurations_train_a_step_or_are_refused():
    counts, wrong = config_fuzz.fuzz(15, seed=0)
    assert wrong == []
    assert sum(counts.values()) == 15
    assert counts[config_fuzz.TRAINED] > 0
    assert counts[config_fuzz.REFUSED] > 0


def test_what_is_neither_is_found(monkeypatch):
    draw = fuzz_draws.Draw({"batch_size": None}, "pretrain", "Python")
    assert config_fuzz.outcome(draw, 10**6)[0] == config_fuzz.REFUSED
    monkeypatch.setattr(validation, "check_fields", lambda config: None)
    assert config_fuzz.outcome(draw, 10**6 + 1)[0] == config_fuzz.ELSE


@pytest.mark.parametrize("field", [*RULES, *SETTINGS])
def test_what_is_drawn_inside_is_allowed_and_outside_not_always(field):
    rule = (RULES | SETTINGS)[field]
    for value in fuzz_draws.small().get(field, ()):
        assert rule.accepts(value) or (value is None and rule.optional)
    assert not all(map(rule.accepts, fuzz_draws.WRONG))
