"""Rates that learn from the weights around the threshold of their layer's mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.config.sections import method
from harp_jax.methods import Live, Window
from harp_jax.methods.harp import Harp
from harp_jax.pruning.layers import masked_kernel
from harp_jax.pruning.masks import channel_mask, kept_channels, kept_weights, weight_mask
from harp_jax.pruning.rates import logit_from_rate, rate_from_logit
from harp_jax.pruning.window import window_mask, windowed, windowed_kernel
from harp_jax.run import experiment

MINIMUM = jnp.float32(0.01)


def pulled(masked, cotangent, *arguments):
    value, pull_back = jax.vjp(lambda *each: masked(*each, MINIMUM), *arguments)
    return value, pull_back(cotangent)


@pytest.mark.parametrize(
    ("kernel", "scores"), [((3, 3, 4, 5), (3, 3, 4, 5)), ((3, 3, 8, 5), (8,)), ((32, 7), (8,))]
)
def test_only_the_gradient_of_the_rate_is_another_one(kernel, scores):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (kernel, scores, kernel)
    kernel, scores, cotangent = map(jax.random.normal, keys, shapes)
    arguments = cotangent, kernel, scores, logit_from_rate(0.4, 0.01)
    value, found = pulled(windowed(0.5), *arguments)
    theirs, expected = pulled(masked_kernel, *arguments)
    assert_array_equal(value, theirs)
    assert_array_equal(found[0], expected[0])
    assert_array_equal(found[1], expected[1])
    assert abs(float(found[2] - expected[2])) > 0.01


slope = jax.jit(
    lambda width, *each: pulled(lambda *arguments: windowed_kernel(*arguments, width=width), *each)[
        1
    ][2],
    static_argnums=0,
)


@pytest.mark.slow
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    size=st.sampled_from([2, 37, 300]),
    rate=st.floats(0.02, 0.95),
    width=st.sampled_from([0.1, 0.5, 1.0]),
    removed=st.integers(0, 100),
    seed=st.integers(0, 9),
)
def test_the_gradient_is_the_mean_over_the_ranks_around_the_threshold(
    size, rate, width, removed, seed
):
    rng = np.random.default_rng(seed)
    scores, kernel, cotangent = rng.normal(size=(3, size)).astype(np.float32)
    scores[: min(removed, size - 1)] = 0.0
    logit = logit_from_rate(rate, 0.01)
    found = slope(width, *map(jnp.asarray, (cotangent, kernel, scores, logit)))
    kept = rate_from_logit(logit, MINIMUM)
    left = max(np.float32((scores != 0).mean()) - kept, 0.0)
    half = min(max(kept * width, 1 / size), left)
    ends = jnp.float32(max(kept - half, 0.0)), jnp.float32(kept + half)
    first, last = (int(kept_weights(end, size)) for end in ends)
    around = np.argsort(-np.abs(scores), kind="stable")[first:last]
    around = around[scores[around] != 0]
    worth = (cotangent * kernel)[around]
    share = float(jax.nn.sigmoid(logit))
    by_logit = 0.99 * share * (1 - share)  # how fast the rate grows
    expected = by_logit * size * worth.mean() if worth.size else 0.0
    assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_channels_count_by_their_own_ranks():
    scores = jnp.asarray([0.1, 3.0, 0.0, 2.0, 1.0, 0.5, 0.4, 0.3])
    found = window_mask(scores, jnp.float32(0.5), 0.5, channel_mask)
    assert [int(kept_channels(jnp.float32(rate), 8)) for rate in (0.25, 0.75)] == [2, 6]
    assert_array_equal(found, [0, 0, 0, 0, 2, 2, 2, 2])


def test_weights_that_no_change_of_the_rate_moves_do_not_hold_it():
    """Of the masked weights the next ones would help, and the hundreds after them do harm."""
    scores = jnp.arange(1004, 0, -1, dtype=jnp.float32)
    worth = jnp.where(jnp.arange(1004) < 30, -1.0, 1.0)
    logit = logit_from_rate(16 / 1004, 0.01)

    def pull(masked):
        return pulled(masked, jnp.ones(1004), worth, scores, logit)[1][2]

    assert pull(windowed(0.5)) < 0 < pull(masked_kernel)


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.8, 0.95])
def test_the_gradient_is_the_slope_of_a_loss_that_is_smooth_in_the_rate(rate):
    """Each weight is worth a little less than the one before: L = -(1 - a) * a at any rate a."""
    scores = jnp.arange(1000, 0, -1, dtype=jnp.float32)
    worth = -jnp.linspace(1.0, -1.0, 1000) / 1000
    logit = logit_from_rate(rate, 0.01)
    for width in (0.1, 0.5):
        found = pulled(windowed(width), jnp.ones(1000), worth, scores, logit)[1][2]
        share = float(jax.nn.sigmoid(logit))
        slope = -(1 - 2 * rate) * 0.99 * share * (1 - share)
        assert_allclose(found, slope, atol=0.01 * share)


def test_a_rate_without_weights_to_add_is_not_held_up():
    scores = jnp.zeros(100).at[:30].set(jnp.arange(30, 0, -1, dtype=jnp.float32))
    kernel, helpful = jnp.ones(100), -jnp.ones(100)

    def pull(rate):
        return pulled(windowed(0.5), helpful, kernel, scores, logit_from_rate(rate, 0.01))[1][2]

    assert pull(0.4) == 0.0
    assert pull(0.25) < 0.0


@pytest.mark.parametrize("size", [2, 8, 300])
def test_the_last_kept_weight_and_the_next_one_always_count(size):
    scores = jnp.arange(size, 0, -1, dtype=jnp.float32)
    for mask in (weight_mask, channel_mask):
        found = window_mask(scores, jnp.float32(0.7 / size), 0.1, mask)
        assert found[1] > 0


def test_it_goes_around_live_connections_and_trains_the_same():
    config = runs.digits(**{"prune.window": 0.5, "prune.live": True})
    built = method(config)
    assert (type(built), type(built.method)) == (Window, Live)
    assert (built.trains, built.stream, built.width) == (Harp.trains, Harp.stream, 0.5)
    with pytest.raises(ValueError, match=r"width=0\.0: allowed are numbers in \(0, 1\]"):
        Window(Harp(), 0.0)


@pytest.mark.slow
def test_a_run_learns_other_rates(tmp_path, tmp_path_factory):
    dense = runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"
    rates = []
    for width in (0.0, 0.5):
        fields = {"prune.source": str(dense), "prune.window": width, "prune.live": True}
        config = runs.digits(**fields, stages=("prune",), loss="natural")
        experiment.run(config, tmp_path / str(width))
        rows = runs.metrics(tmp_path / str(width), "prune")
        rates.append(rows[-1]["rates"])
    assert rates[0] != rates[1]
