"""Invariants of masks, rates and budgets."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harp_jax.pruning import budget, sparsity
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import bake, leaves_by_path
from harp_jax.pruning.masks import channel_mask, weight_mask
from harp_jax.pruning.rates import logit_from_rate, rate_from_logit

few = settings(max_examples=20, deadline=None, derandomize=True)
mask_of = jax.jit(weight_mask)
channels_of = jax.jit(channel_mask)
rates = st.floats(0.0, 1.0, width=32)


@few
@given(rate=rates, seed=st.integers(0, 9), levels=st.sampled_from([1, 2, 5, 10**6]))
def test_weight_mask_keeps_exactly_the_largest_also_with_ties(rate, seed, levels):
    random = np.random.default_rng(seed)
    scores = random.integers(-levels, levels + 1, (7, 11)).astype(np.float32) / levels
    mask = np.asarray(mask_of(scores, jnp.float32(rate)))
    kept = 77 - int(np.float32(np.float32(1) - np.float32(rate)) * np.float32(77))
    order = np.argsort(-np.abs(scores).ravel(), kind="stable")  # ties: the first in C order
    expected = np.zeros(77, np.float32)
    expected[order[:kept]] = 1
    np.testing.assert_array_equal(mask.ravel(), expected)


@pytest.mark.parametrize("levels", [1, 10**6], ids=["ties", "no ties"])
def test_eager_masks_are_the_compiled_ones(levels):
    scores = jnp.float32(np.random.default_rng(0).integers(-levels, levels + 1, (7, 11)) / levels)
    rate = jnp.float32(0.3)
    np.testing.assert_array_equal(weight_mask(scores, rate), mask_of(scores, rate))
    np.testing.assert_array_equal(channel_mask(scores[0], rate), channels_of(scores[0], rate))


def test_weight_mask_of_many_layers_at_once():
    scores = jax.random.normal(jax.random.key(0), (3, 40, 50))
    masks = jax.jit(jax.vmap(weight_mask))(scores, jnp.array([0.1, 0.5, 1.0]))
    np.testing.assert_array_equal(masks.sum((1, 2)), [200, 1000, 2000])


def test_straight_through_gradients():
    scores = jnp.array([[0.5, -2.0, 0.0], [1.0, -0.1, 3.0]])
    weights = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    loss = lambda s, a: (weights * weight_mask(s, a)).sum()  # noqa: E731
    to_scores, to_rate = jax.grad(loss, argnums=(0, 1))(scores, jnp.float32(0.5))
    np.testing.assert_array_equal(to_scores, weights * jnp.sign(scores))
    assert to_rate == 21.0


@few
@given(rate=rates, channels=st.sampled_from([1, 7, 40]))
def test_channel_mask_is_never_dead(rate, channels):
    scores = np.random.default_rng(channels).normal(size=channels).astype(np.float32)
    kept = np.asarray(channels_of(scores, jnp.float32(rate))).sum()
    assert kept == max(1, np.round(np.float32(rate) * np.float32(channels)))


@few
@given(minimum=st.floats(0.0, 0.5), share=st.floats(0.001, 0.98))
def test_logit_from_rate_is_the_inverse(minimum, share):
    rate = minimum + (1 - minimum) * share
    assert rate_from_logit(logit_from_rate(rate, minimum), minimum) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 1.0])
def test_logits_are_finite_at_the_ends(rate):
    assert np.isfinite(logit_from_rate(rate, 0.1))


@settings(few, max_examples=10)
@given(
    logits=st.lists(st.floats(-8, 4, width=32), min_size=3, max_size=3),
    target=st.floats(0.03, 0.9),
)
def test_shift_meets_the_budget_and_wastes_nothing(logits, target):
    sizes = {"a": 500, "b": 2000, "c": 40}
    before = dict(zip(sizes, logits, strict=True))
    after, shift = budget.shift_to_budget(before, 0.001, sizes, target)
    kept = budget.kept_total(after, 0.001, sizes)
    assert kept <= target * 2540
    if budget.kept_total(before, 0.001, sizes) <= target * 2540:
        assert shift == 0.0
    else:
        assert shift < 0.0
        more = {name: logit + 2e-3 for name, logit in after.items()}
        assert budget.kept_total(more, 0.001, sizes) > target * 2540 - len(sizes)


def test_an_impossible_budget_is_refused():
    with pytest.raises(ValueError, match="keep 3 weights, the target allows 2"):
        budget.shift_to_budget(dict.fromkeys("abc", 0.0), 1e-3, dict.fromkeys("abc", 80), 0.01)


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_baked_kernels_keep_what_is_counted(granularity):
    pruned = networks.tiny(granularity)
    plain = jax.device_get(jax.jit(bake)(pruned))
    assert set(plain) == {"params", "batch_stats"}
    rows = sparsity.layer_sparsity(pruned)
    kernels = leaves_by_path(plain["params"])
    kept = [np.count_nonzero(kernels[path]) for path in parameter_costs(pruned["params"])]
    assert [row.kept for row in rows] == kept
    assert [row.layer for row in rows] == ["conv1", "conv2", "dense1", "dense2"]
