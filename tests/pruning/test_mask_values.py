import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

from harp_jax.pruning.masks import kept_channels, kept_weights, kernel_mask, weight_mask

masked = jax.jit(weight_mask)


def kept_count(rate, size):
    return size - int((np.float32(1) - np.float32(rate)) * np.float32(size))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(1,), (511,), (512,), (3, 3, 19, 8)]),  # around and over one block
    levels=st.sampled_from([1, 3, 10_000]),
    rate=st.floats(0, 1, width=32),
    seed=st.integers(0, 99),
)
def test_blocks_that_are_counted_together_do_not_show(shape, levels, rate, seed):
    rng = np.random.default_rng(seed)
    scores = rng.choice(10.0 ** rng.uniform(-30, 3, levels), shape) * rng.choice([-1, 1], shape)
    scores = scores.astype(np.float32)
    kept = np.argsort(-np.abs(scores).ravel(), kind="stable")[: kept_count(rate, scores.size)]
    expected = np.zeros(scores.size, np.float32)
    expected[kept] = 1
    assert_array_equal(masked(scores, jnp.float32(rate)).ravel(), expected)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-45, float(np.finfo(np.float32).max)])
def test_equal_scores_keep_the_first(value):
    mask = masked(jnp.full((4, 5), value, jnp.float32), jnp.float32(0.34))
    assert_array_equal(mask.ravel(), [1.0] * 7 + [0.0] * 13)


def test_zeros_of_both_signs_are_equal():
    mask = masked(jnp.array([-0.0, 0.0, -0.0]), jnp.float32(0.2))
    assert_array_equal(mask, [1.0, 0.0, 0.0])


def test_hand_worked_mask():
    scores = jnp.array([[0.3, -0.9], [0.1, 0.4], [-0.2, 0.0]])
    assert_array_equal(masked(scores, jnp.float32(0.5)), [[1, 1], [0, 1], [0, 0]])
    assert_array_equal(masked(scores, jnp.float32(1.0)), np.ones((3, 2)))
    assert_array_equal(masked(scores, jnp.float32(0.0)), np.zeros((3, 2)))


@pytest.mark.parametrize("size", [1, 432, 4608, 2_359_296])
def test_compiled_and_eager_counts_agree(size):
    rates = jnp.linspace(0.0, 1.0, 2001)
    compiled = jax.jit(kept_weights, static_argnums=1)(rates, size)
    assert_array_equal(compiled, kept_weights(rates, size))
    assert_array_equal(compiled, [kept_count(rate, size) for rate in np.asarray(rates)])


def test_channels_round_half_to_even():
    rates = jnp.array([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
    assert_array_equal(kept_channels(rates, 5), [1, 1, 2, 2, 4, 5])


@pytest.mark.parametrize("shape", [(3, 3, 4, 2), (4, 2)])
def test_channel_granularity_takes_whole_inputs(shape):
    mask = kernel_mask(jnp.array([0.1, -2.0, 0.3, 1.0]), jnp.float32(0.5), shape)
    expected = np.broadcast_to(np.array([[0], [1], [0], [1]]), shape)
    assert_array_equal(jnp.broadcast_to(mask, shape), expected)
