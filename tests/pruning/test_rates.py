import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from numpy.testing import assert_allclose

from harp_jax.pruning.rates import (
    LARGEST_SHARE,
    SMALLEST_SHARE,
    logit_from_rate,
    rate_from_logit,
)

few = settings(max_examples=50, deadline=None, derandomize=True)
minima = st.floats(0, 0.5, width=32)


@few
@given(st.floats(-9, 4.5, width=32), minima)
def test_logit_is_the_inverse_of_the_rate(logit, minimum):
    rate = rate_from_logit(logit, minimum)
    assert minimum < rate < 1
    again = rate_from_logit(logit_from_rate(rate, minimum), minimum)
    assert_allclose(again, rate, rtol=1e-6)


@few
@given(st.floats(0, 1, width=32), minima)
def test_logit_of_any_rate_is_finite_and_bounded(rate, minimum):
    logit = logit_from_rate(rate, minimum)
    bounds = [np.log(share / (1 - share)) for share in (SMALLEST_SHARE, LARGEST_SHARE)]
    assert bounds[0] - 1e-4 <= logit <= bounds[1] + 1e-4


def test_rates_out_of_reach_go_to_the_nearest():
    assert_allclose(rate_from_logit(logit_from_rate(1.0, 0.0), 0.0), 0.99, rtol=1e-6)
    assert_allclose(rate_from_logit(logit_from_rate(1.0, 0.2), 0.2), 0.992, rtol=1e-6)
    for rate in (0.001, 0.01, 0.0):  # below, at and far below the minimum
        assert_allclose(rate_from_logit(logit_from_rate(rate, 0.01), 0.01), 0.01, rtol=2e-4)


def test_rate_of_a_logit_by_hand():
    assert_allclose(rate_from_logit(0.0, 0.2), 0.6, rtol=1e-6)
    assert_allclose(rate_from_logit(np.log(3.0), 0.0), 0.75, rtol=1e-6)
    slope = jax.grad(rate_from_logit)(jnp.float32(0.0), jnp.float32(0.2))
    assert_allclose(slope, 0.8 * 0.25, rtol=1e-6)
