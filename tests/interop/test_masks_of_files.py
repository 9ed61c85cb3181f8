"""Masks of imported networks, entry for entry, by NumPy's own sort and in every corner case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax.export import FileError
from harp_jax.interop import pruned
from harp_jax.interop.layouts import layout
from harp_jax.interop.pruned import Rule
from harp_jax.pruning.masks import kernel_mask
from harp_jax.pruning.rates import rate_from_logit

TINY = layout("tiny", (8, 8, 1), 10)
FC1 = TINY.layers()["fc1"]
mask_of = jax.jit(kernel_mask, static_argnums=2)


def by_sorting(scores, removed):
    """The authors' rule: in ascending order of magnitude the first `removed` go."""
    mask = np.ones(scores.size, np.float32)
    mask[np.argsort(np.abs(scores).ravel(), kind="stable")[:removed]] = 0
    return mask.reshape(scores.shape)


def turned(array):
    """[out, features as C, H, W] -> [features as H, W, C, out]."""
    return array.reshape(len(array), 16, 2, 2).transpose(2, 3, 1, 0).reshape(64, -1)


def check(scores, k_score, rule, removed, exact=True):
    path, shape = FC1
    found = pruned.layer(TINY.trained, path, shape, scores, k_score, rule)
    rate = rate_from_logit(found.logit, np.float32(rule.minimum))
    mask = mask_of(jnp.asarray(found.scores), rate, (64, 32))
    np.testing.assert_array_equal(mask, turned(by_sorting(scores, removed)))
    if exact:
        np.testing.assert_array_equal(found.scores, turned(scores))
    return found


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.1, 0.3, 0.5, 0.9, 0.99, 0.9999])
def test_one_rate_for_all_layers(rate):
    scores = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    check(scores, None, Rule(0.0, rate), int((1 - rate) * 2048))


@pytest.mark.parametrize("k_score", [-12.0, -6.0, -3.3, -1.0, 0.0, 0.7, 4.0, 12.0])
@pytest.mark.parametrize("minimum", [0.0, 0.001, 0.01, 0.1])
def test_learned_rates(k_score, minimum):
    scores = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    rate = (1 - minimum) / (1 + np.exp(-k_score)) + minimum
    found = check(scores, np.array(k_score, np.float32), Rule(minimum), int((1 - rate) * 2048))
    assert (found.logit == np.float32(k_score)) != found.moved


def test_equal_scores_go_as_in_the_authors_order():
    rng = np.random.default_rng(2)
    scores = rng.integers(-3, 4, (32, 64)).astype(np.float32)  # many of each, zeros too
    for rate in (0.1, 0.3, 0.5, 0.8, 0.99):
        removed = int((1 - rate) * 2048)
        found = check(scores, None, Rule(0.0, rate), removed, exact=False)
        assert np.abs(found.scores - turned(scores)).max() <= 1e-6


def test_scores_that_are_all_zero():
    scores = np.zeros((32, 64), np.float32)
    check(scores, None, Rule(0.0, 0.25), 1536, exact=False)


def test_channels_of_a_flattened_layer_are_single_features():
    path, shape = FC1
    scores = np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)
    found = pruned.layer(TINY.trained, path, shape, scores, np.array(-1.0, np.float32), Rule(0.05))
    kept = round(64 * (0.95 / (1 + np.e) + 0.05))
    mask = by_sorting(scores, 64 - kept)
    expected = np.broadcast_to(mask, (32, 64))
    rate = rate_from_logit(found.logit, np.float32(0.05))
    found_mask = mask_of(jnp.asarray(found.scores), rate, (64, 32))
    np.testing.assert_array_equal(np.broadcast_to(found_mask, (64, 32)), turned(expected))


def test_layers_without_anything_kept_are_refused():
    path, shape = FC1
    scores = np.ones((1, 64), np.float32)
    with pytest.raises(FileError, match="its rate keeps 0 of 64; allowed is at least one"):
        pruned.layer(TINY.trained, path, shape, scores, np.array(-20.0, np.float32), Rule(0.001))


def test_the_authors_rate_in_float32_at_many_logits():
    """Counts of a large layer are those of exact arithmetic but for single weights."""
    logits = np.linspace(-9, 9, 401).astype(np.float32)
    size = 512 * 512 * 9
    found = [Rule(0.01).removed(np.asarray(logit), size) for logit in logits]
    exact = (1 - (0.99 / (1 + np.exp(-logits.astype(np.float64))) + 0.01)) * size
    assert np.abs(found - exact).max() < 2
