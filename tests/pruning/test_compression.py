import re

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.pruning import layers
from harp_jax.pruning.budget import kept_total, settle, shift_to_budget
from harp_jax.pruning.compression import (
    add_compression_gradient,
    compression_loss,
    soft_rate,
    stepwise_gamma,
    target_reached,
)
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.rates import rate_from_logit

SIZES = {"conv1": 432, "conv2": 4608, "dense1": 93_440, "dense2": 320}
MINIMUM, TARGET = 0.001, 0.01
few = settings(max_examples=30, deadline=None, derandomize=True)


@few
@given(st.lists(st.floats(2**-10, 1, width=32), min_size=1, max_size=5), st.floats(0.01, 1))
def test_loss_is_the_excess_over_the_target(rates, target):
    costs = [10 ** (place + 1) for place in range(len(rates))]
    share = np.dot(rates, costs) / sum(costs)
    loss = compression_loss(rates, costs, target)
    assert_allclose(soft_rate(rates, costs), share, rtol=1e-5)
    assert_allclose(loss, max(share / target - 1, 0), rtol=1e-4, atol=1e-5)
    assert (loss == 0) or share > target * (1 - 1e-5)


def test_loss_has_no_gradient_below_the_target_and_half_of_it_at_the_target():
    slope = jax.grad(lambda rate: compression_loss([rate], [100], 0.5))
    assert slope(jnp.float32(0.4)) == 0.0
    assert slope(jnp.float32(0.5)) == 1.0
    assert slope(jnp.float32(0.6)) == 2.0


def test_loss_takes_any_tree():
    rates = {"a": {"kernel": jnp.float32(0.5)}, "b": {"kernel": jnp.float32(0.1)}}
    costs = {"a": {"kernel": 10}, "b": {"kernel": 30}}
    assert_allclose(compression_loss(rates, costs, 0.1), 1.0, rtol=1e-6)


def test_target_counts_as_reached_at_four_decimals():
    losses = [0.0, 4.9e-5, 5.1e-5, 1e-4]
    assert [bool(target_reached(jnp.float32(loss))) for loss in losses] == [
        True,
        True,
        False,
        False,
    ]


def test_gamma_freezes_for_good():
    rule = stepwise_gamma(0.01)
    state, gammas = rule.init(), []
    for loss in (1.0, 0.5, 0.0, 0.7, 0.9):
        gammas.append(float(state.gamma))
        state = rule.update(state, jnp.float32(loss))
    assert_allclose(gammas, [0.01, 0.02, 0.03, 0.03, 0.03], rtol=1e-6)
    assert int(state.epoch) == 5


def test_compression_gradient_needs_the_logits():
    transformation = add_compression_gradient({"a": 10}, 0.1, 0.01, 0.01, updates_per_epoch=2)
    logits = {"a": jnp.float32(0.0)}
    with pytest.raises(ValueError, match="params=None"):
        transformation.update(logits, transformation.init(logits))


def test_compression_gradient_is_added():
    transformation = add_compression_gradient({"a": 10}, 0.1, 0.2, 0.01, updates_per_epoch=2)
    logits = {"a": jnp.float32(0.0)}
    updates, _ = transformation.update({"a": jnp.float32(5.0)}, transformation.init(logits), logits)
    # 0.01 (gamma) * 1 / 0.1 (slope of the loss) * 0.8 * 0.25 (slope of the rate)
    assert_allclose(updates["a"], 5.0 + 0.02, rtol=1e-6)


logit_lists = st.lists(st.floats(-12, 6, width=32), min_size=4, max_size=4)


@settings(few, max_examples=10)
@given(logit_lists)
def test_shift_meets_the_budget_and_no_smaller_shift_does(values):
    logits = {name: jnp.float32(value) for name, value in zip(SIZES, values, strict=True)}
    shifted, shift = shift_to_budget(logits, MINIMUM, SIZES, TARGET)
    budget = TARGET * sum(SIZES.values())
    assert kept_total(shifted, MINIMUM, SIZES) <= budget
    if kept_total(logits, MINIMUM, SIZES) <= budget:
        assert shift == 0.0
        assert_array_equal(list(shifted.values()), list(logits.values()))
        return
    assert shift < 0
    smaller = {name: logit + jnp.float32(shift + 1e-4) for name, logit in logits.items()}
    assert kept_total(smaller, MINIMUM, SIZES) > budget
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(list(shifted.values()))[order]) >= 0).all()


@settings(few, max_examples=10)
@given(logit_lists)
def test_settled_rates_keep_as_much_and_stand_rounding(values):
    logits = {name: jnp.float32(value) for name, value in zip(SIZES, values, strict=True)}
    settled = settle(logits, MINIMUM, SIZES)
    for name, size in SIZES.items():
        kept = [int(kept_weights(rate_from_logit(logits[name], MINIMUM), size))]
        rate = rate_from_logit(settled[name], MINIMUM)
        kept += [int(kept_weights(jnp.nextafter(rate, to), size)) for to in (-jnp.inf, jnp.inf)]
        assert len(set(kept)) == 1


def test_shift_names_a_target_out_of_reach():
    logits = {"a": jnp.float32(0.0), "b": jnp.float32(0.0)}
    with pytest.raises(ValueError, match=r"target=0\.1: .* keep 22 weights, .* allows 11$"):
        shift_to_budget(logits, 0.2, {"a": 100, "b": 10}, 0.1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": 1.5}, "target=1.5: allowed are numbers in (0, 1]"),
        ({"target": 0.0}, "target=0.0: allowed"),
        ({"target": float("nan")}, "target=nan: allowed"),
        ({"minimum": 1.0}, "minimum=1.0: allowed are numbers in [0, 1)"),
        ({"updates_per_epoch": 0}, "updates_per_epoch=0: allowed are whole numbers >= 1"),
    ],
)
def test_settings_outside_of_their_range(change, said):
    settings = {"target": 0.1, "minimum": 0.01, "gamma0": 0.01, "updates_per_epoch": 2}
    with pytest.raises(ValueError, match=re.escape(said)):
        add_compression_gradient({"a": 10}, **{**settings, **change})


@pytest.mark.parametrize("rate", [1.5, -0.1, float("nan")])
def test_rates_outside_of_their_range(rate):
    variables = {"params": {"dense1": {"kernel": jnp.ones((3, 2))}}}
    path = ("dense1", "kernel")
    with pytest.raises(ValueError, match=r"rates\['dense1'\]=.*: allowed are numbers in \(0, 1\]"):
        layers.make_prunable(variables, {path: rate}, 0.0, "weight")
    scores = {path: jnp.ones((3, 2))}
    traced = jax.jit(lambda given: layers.add_scores(variables, scores, {path: given}, 0.0))
    assert traced(0.5)["rates"]["dense1"]["kernel"] == 0
