"""Filling a budget up: as much as is allowed, nothing taken away, and nothing left to do."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

from harp_jax import models
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import channels, schemes
from harp_jax.pruning.budget import kept_total, settle, shift_to_budget
from harp_jax.pruning.filling import fill, fill_live
from harp_jax.pruning.layers import bake, leaves_by_path, make_prunable, tree_of_leaves
from harp_jax.pruning.live import live_weights
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.rates import rate_from_logit

SIZES = {"conv1": 432, "conv2": 4608, "conv3": 4608, "dense1": 93_440, "dense2": 320}
MINIMUM = 1e-4
few = settings(max_examples=8, deadline=None, derandomize=True)
logit_lists = st.lists(st.floats(-12, 6, width=32), min_size=5, max_size=5)


def counts(logits):
    return {
        name: int(kept_weights(rate_from_logit(logits[name], MINIMUM), size))
        for name, size in SIZES.items()
    }


@few
@given(logit_lists, st.floats(0.01, 1.0), st.booleans())
def test_filled_masks_keep_exactly_the_budget_and_all_that_was_kept(values, target, equal):
    values = [values[0]] * 5 if equal else values  # then layers grow at once
    logits = {name: jnp.float32(value) for name, value in zip(SIZES, values, strict=True)}
    logits, _ = shift_to_budget(logits, MINIMUM, SIZES, target)
    filled = settle(fill(logits, MINIMUM, SIZES, target), MINIMUM, SIZES)
    assert kept_total(filled, MINIMUM, SIZES) == int(target * sum(SIZES.values()))
    before, after = counts(logits), counts(filled)
    assert all(after[name] >= before[name] for name in SIZES)
    again = fill(filled, MINIMUM, SIZES, target)
    assert_array_equal(list(again.values()), list(filled.values()))


@pytest.mark.slow
@few
@given(st.integers(0, 2**16), st.floats(0.1, 0.9))
def test_layers_that_share_channels_grow_together_and_none_can_grow_more(seed, target):
    scheme = schemes.scheme(ResNet(10, stages=(1, 1), width=4), (8, 8, 1), "channel")
    cost, generator = scheme.cost, np.random.default_rng(seed)
    share = cost.target_share(target)
    tied = [group.readers for group in scheme.architecture.prunable]
    logits = {}
    for paths in tied:
        logits |= dict.fromkeys(paths, jnp.float32(generator.uniform(-3, 3)))
    logits, _ = shift_to_budget(logits, 0.0, cost, share)
    filled = settle(fill(logits, 0.0, cost, share, tied), 0.0, cost)
    budget = share * cost.total
    kept = kept_total(filled, 0.0, cost)
    assert kept_total(logits, 0.0, cost) <= kept <= budget
    for paths in tied:
        assert len({float(filled[path]) for path in paths}) == 1
        size = next(group.size for group in scheme.architecture.prunable if group.readers == paths)
        rate = float(rate_from_logit(filled[paths[0]], 0.0)) + 1 / size
        if round(rate * size) <= size:
            rates = {path: rate_from_logit(logit, 0.0) for path, logit in filled.items()}
            assert cost.kept({**rates, **dict.fromkeys(paths, jnp.float32(rate))}) > budget
    again = settle(fill(filled, 0.0, cost, share, tied), 0.0, cost)
    assert_array_equal(list(again.values()), list(filled.values()))


@functools.cache
def tiny():
    model = models.create("tiny", 10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return variables, channels.trace(model, (8, 8, 1)).groups


def pruned(seed, rate, minimum):
    """The network with random scores, which leave many units dead."""
    variables, _ = tiny()
    paths = [path for path in leaves_by_path(variables["params"]) if path[-1] == "kernel"]
    variables = make_prunable(variables, dict.fromkeys(paths, rate), minimum, "weight")
    generator, scores = np.random.default_rng(seed), leaves_by_path(variables["scores"])
    random = {path: generator.normal(size=leaf.shape) for path, leaf in scores.items()}
    return {**variables, "scores": tree_of_leaves(jax.tree.map(jnp.float32, random))}


def masked(variables):
    return {
        path: np.asarray(leaf) != 0
        for path, leaf in leaves_by_path(jax.jit(bake)(variables)["params"]).items()
        if path[-1] == "kernel"
    }


def live(variables):
    _, groups = tiny()
    return live_weights(jax.jit(bake)(variables)["params"], groups)


@pytest.mark.slow
@few
@given(st.integers(0, 2**16), st.floats(0.02, 0.1), st.floats(1.0, 2.0))
def test_live_networks_are_filled_with_weights_that_connect(seed, rate, more):
    _, groups = tiny()
    minimum = 1e-4
    before = pruned(seed, rate, minimum)
    target = more * (rate + 4 / 3592)
    budget = int(target * 3592)
    assert sum(leaf.sum() for leaf in masked(before).values()) <= budget
    found = live(before)
    filled = fill_live(before, groups, minimum, target)
    kept, after = masked(filled), live(filled)
    total = sum(leaf.sum() for leaf in kept.values())
    assert total <= budget
    if not any(found.values()):
        jax.tree.map(assert_array_equal, filled, before)
        return
    for path, leaf in masked(before).items():
        alive = leaf & (leaves_by_path(filled["scores"])[path] != 0)
        assert (kept[path] | ~alive).all()  # nothing that connects is taken away
        assert after[path] >= found[path]
    room = {path: np.count_nonzero(leaf) for path, leaf in leaves_by_path(filled["scores"]).items()}
    if min(room.values()) > 0:  # every layer has a weight of its own for its smallest rate
        assert sum(after.values()) == total == min(budget, sum(room.values()))
    again = fill_live(filled, groups, minimum, target)
    jax.tree.map(assert_array_equal, again, filled)


def test_a_network_without_any_path_is_left_alone():
    _, groups = tiny()
    before = pruned(0, 0.02, 1e-4)
    scores = leaves_by_path(before["scores"])
    cut = next(path for path in scores if path[0] == "dense2")
    scores[cut] = jnp.zeros_like(scores[cut])
    kernels = leaves_by_path(before["params"])
    kernels[cut] = jnp.zeros_like(kernels[cut])
    before = {**before, "scores": tree_of_leaves(scores), "params": tree_of_leaves(kernels)}
    jax.tree.map(assert_array_equal, fill_live(before, groups, 1e-4, 0.1), before)


@pytest.mark.parametrize("target", [0.3, 1.0])
def test_the_next_highest_scores_come_back(target):
    before = pruned(1, 0.1, 1e-4)
    sizes = {path: leaf.size for path, leaf in masked(before).items()}
    logits = fill(leaves_by_path(before["rates"]), 1e-4, sizes, target)
    kept = masked({**before, "rates": tree_of_leaves(logits)})
    for path, mask in kept.items():
        scores = np.abs(leaves_by_path(before["scores"])[path])
        assert mask.all() or scores[mask].min() >= scores[~mask].max()
        assert (mask | ~masked(before)[path]).all()
    assert sum(mask.sum() for mask in kept.values()) == int(target * 3592)
