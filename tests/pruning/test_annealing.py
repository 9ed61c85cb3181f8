"""Targets and rates that come down: monotone, between their ends, and exact at the last update."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.pruning.annealing import annealed_logit, annealed_target, progress
from harp_jax.pruning.compression import (
    GammaState,
    add_compression_gradient,
    compression_loss,
)
from harp_jax.pruning.rates import logit_from_count, rate_from_logit

few = settings(max_examples=50, deadline=None, derandomize=True)
shares = st.floats(1e-4, 1.0)
targets_of = jax.jit(jax.vmap(annealed_target, (None, None, 0)))
logits_of = jax.jit(jax.vmap(annealed_logit, (None, None, 0)))


@few
@given(shares, shares, st.integers(1, 50))
def test_the_target_comes_down_from_the_start_and_ends_exactly(one, other, last):
    start, target = max(one, other), min(one, other)
    done = jnp.stack([progress(updates, last) for updates in range(last + 3)])
    found = np.asarray(targets_of(start, target, done))
    assert_allclose(found[0], start, rtol=1e-6)
    assert_array_equal(found[last:], np.float32(target))
    assert (np.diff(found) <= 1e-6 * found[:-1]).all()
    ratios = found[1 : last + 1] / found[:last]  # geometric: the same factor every update
    assert_allclose(ratios, (target / start) ** (1 / last), rtol=1e-4)


@few
@given(st.integers(1, 1000), st.integers(1, 50))
def test_fixed_rates_come_down_from_nearly_one_and_end_exactly(count, last):
    minimum = 5e-4
    logit = logit_from_count(max(count, 2), 1000, minimum)
    done = jnp.stack([progress(updates, last) for updates in range(last + 3)])
    found = np.asarray(logits_of(logit, minimum, done))
    final = float(rate_from_logit(logit, minimum))
    rates = np.asarray(rate_from_logit(found, minimum))
    assert rates[0] >= 0.989
    assert_array_equal(found[last:], np.float32(logit))
    assert (np.diff(found) <= 1e-5).all()
    middle = rates[last // 2]
    if last % 2 == 0 and middle < 0.98:
        assert_allclose(middle, final**0.5, rtol=1e-4)


def test_the_gradient_is_that_of_the_moment_and_gamma_freezes_at_the_final_target():
    costs, target, minimum = {"a": 100}, 0.1, 0.01
    logits = {"a": jnp.float32(0.0)}  # a rate of 0.505
    moments = jnp.array([0.6, 0.4, 0.3, 0.6, 0.6])
    link = add_compression_gradient(
        costs, target, minimum, 0.5, 2, target_at=lambda count: moments[count]
    )
    state, rates = link.init(logits), {"a": rate_from_logit(0.0, minimum)}
    zero, gammas = {"a": jnp.float32(0.0)}, []
    for count in range(5):
        updates, state = link.update(zero, state, logits)
        gamma = 0.5 * (count // 2 + 1)  # grows on, since 0.505 is above 0.1 all the time
        slope = jax.grad(
            lambda logit, at=moments[count]: compression_loss(
                {"a": rate_from_logit(logit, minimum)}, costs, at
            )
        )(0.0)
        assert_allclose(updates["a"], gamma * slope, rtol=1e-6)
        assert (slope == 0) == bool(rates["a"] < moments[count])
        gammas.append(state.gamma)
    assert isinstance(gammas[-1], GammaState)
    assert not bool(gammas[-1].frozen)
