"""Regrowth against plain NumPy: what is dropped, what grows, and that no weight is gained."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from harp_jax.pruning.layers import bake, leaves_by_path, rates_of, tree_of_leaves
from harp_jax.pruning.masks import kept_weights, weight_mask
from harp_jax.pruning.rates import logit_from_count
from harp_jax.pruning.regrow import ranking, regrow, regrown, resized

few = settings(max_examples=30, deadline=None, derandomize=True)
SIZE, SHAPE = 77, (7, 11)
regrow_jit, regrown_jit = jax.jit(regrow), jax.jit(regrown)


def drawn(seed, levels):
    """A mask, weights and what they grow by; with few levels many are equal, and many zero."""
    random = np.random.default_rng(seed)
    mask = (random.random(SHAPE) < random.random()).astype(np.float32)
    values = random.integers(-levels, levels + 1, (2, *SHAPE)).astype(np.float32) / levels
    return mask, *values


def numpy_regrow(mask, weights, growth, dropped):
    """Sorts the kept weights by magnitude, then all that are masked by growth."""
    kept, new = np.flatnonzero(mask), np.zeros(SIZE, np.float32)
    order = np.argsort(-np.abs(weights.ravel()[kept]), kind="stable")
    new[kept[order[: len(kept) - dropped]]] = 1
    masked = np.flatnonzero(new == 0)
    order = np.argsort(-np.abs(growth.ravel()[masked]), kind="stable")
    new[masked[order[:dropped]]] = 1
    return new.reshape(SHAPE)


@few
@given(
    seed=st.integers(0, 99), levels=st.sampled_from([1, 3, 10**6]), share=st.floats(0, 1, width=32)
)
def test_the_smallest_go_and_the_largest_gradients_come_also_with_ties(seed, levels, share):
    mask, weights, growth = drawn(seed, levels)
    dropped = int(share * mask.sum())
    found = np.asarray(regrow_jit(mask, weights, growth, jnp.int32(dropped)))
    assert_array_equal(found, numpy_regrow(mask, weights, growth, dropped))
    assert found.sum() == mask.sum()
    assert_array_equal(
        found, regrow(*map(jnp.asarray, (mask, weights, growth)), jnp.int32(dropped))
    )


def test_a_kept_weight_of_zero_is_still_a_kept_one():
    mask = jnp.array([0.0, 1.0, 1.0, 0.0])
    found = regrow(mask, jnp.array([9.0, 0.0, 0.0, 9.0]), jnp.zeros(4), jnp.int32(0))
    assert_array_equal(found, mask)
    # Denormal numbers are ranked, or count as zeros: the number is right either way.
    tiny = jnp.float32([1e-45, 1e-40, 0.0, 1e-38])
    assert regrow(jnp.ones(4), tiny, tiny, jnp.int32(2)).sum() == 4


@few
@given(seed=st.integers(0, 99), levels=st.sampled_from([1, 3, 10**6]))
def test_scores_rank_kept_weights_above_those_that_may_grow(seed, levels):
    mask, weights, growth = drawn(seed, levels)
    scores = np.asarray(ranking(*map(jnp.asarray, (mask, weights, growth))))
    kept = mask > 0
    assert scores[kept].min(initial=1) >= 1
    assert 0 <= scores[~kept].min(initial=0) <= scores[~kept].max(initial=0) <= 0.5
    for chosen, by in ((kept, np.abs(weights)), (~kept, np.abs(growth))):
        order = np.argsort(by[chosen], kind="stable")
        assert (np.diff(scores[chosen][order]) >= 0).all()


@pytest.fixture(scope="module")
def network():
    """A pruned network whose scores are of its weights, and a gradient."""
    variables = networks.tiny("weight")
    leaves = leaves_by_path(variables["params"])
    random = np.random.default_rng(0)
    growth = {path: jnp.float32(random.normal(size=leaf.shape)) for path, leaf in leaves.items()}
    return variables, tree_of_leaves(growth)


def masks(variables):
    rates = rates_of(variables)
    scores = leaves_by_path(variables["scores"])
    return {path: np.asarray(weight_mask(scores[path], rate)) for path, rate in rates.items()}


@pytest.mark.slow
def test_a_network_keeps_its_counts_and_what_grows_starts_at_zero(network):
    before, growth = network
    after = regrown_jit(before, growth, jnp.float32(0.3))
    old, new, rates = masks(before), masks(after), rates_of(before)
    weights, params = leaves_by_path(before["params"]), leaves_by_path(after["params"])
    baked = leaves_by_path(bake(after)["params"])
    for path, mask in old.items():
        kept = int(kept_weights(rates[path], mask.size))
        assert new[path].sum() == mask.sum() == kept
        expected = regrow(
            jnp.asarray(mask),
            weights[path],
            leaves_by_path(growth)[path],
            jnp.int32(np.ceil(0.3 * kept)),
        )
        assert_array_equal(new[path], expected)
        assert 0 < (new[path] * (1 - mask)).sum() <= np.ceil(0.3 * kept)
        assert_array_equal(params[path], weights[path] * mask * new[path])
        assert_array_equal(baked[path], params[path])
    assert_array_equal(params["norm1", "scale"], weights["norm1", "scale"])
    jax.tree.map(assert_array_equal, after["rates"], before["rates"])


def test_nothing_is_dropped_at_a_share_of_zero_and_all_may_be_at_one(network):
    before, growth = network
    same, other = (masks(regrown_jit(before, growth, jnp.float32(share))) for share in (0, 1))
    jax.tree.map(assert_array_equal, same, masks(before))
    grown = leaves_by_path(growth)
    for path, mask in other.items():
        magnitudes = np.abs(np.asarray(grown[path]))
        assert magnitudes[mask > 0].min() >= magnitudes[mask == 0].max()


def test_other_rates_drop_the_smallest_or_add_the_next_to_grow(network):
    before, growth = network
    before = regrown_jit(before, growth, jnp.float32(0.3))
    weights, grown = leaves_by_path(before["params"]), leaves_by_path(growth)
    path, other = ("dense1", "kernel"), ("conv2", "kernel")
    old, minimum = masks(before), networks.MINIMUM
    for change in (-20, 20):
        count = int(old[path].sum()) + change
        logit = logit_from_count(count, old[path].size, minimum)
        after = resized(before, {path: logit})
        new = masks(after)
        assert new[path].sum() == count
        assert_array_equal(new[other], old[other])
        moved = new[path] != old[path]
        assert moved.sum() == 20
        if change < 0:
            assert np.abs(weights[path])[moved].max() <= np.abs(weights[path])[new[path] > 0].min()
        else:
            assert np.abs(grown[path])[moved].min() >= np.abs(grown[path])[new[path] == 0].max()
            assert not np.asarray(leaves_by_path(after["params"])[path])[moved].any()
        back = resized(after, {path: leaves_by_path(before["rates"])[path]})
        assert new[path].sum() - masks(back)[path].sum() == change
