"""Robust-ADMM's rounds against plain NumPy, and what they lead to where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.methods.admm import UNMASKED, admm, keep_largest
from harp_jax.pruning.layers import bake, make_prunable

KERNEL, PATH = (6, 4), ("params", "dense", "kernel")
RATE, RHO, GROWTH, EVERY = 0.25, 0.5, 1.5, 3


def tree(kernel, bias=0.0):
    return {"params": {"dense": {"kernel": jnp.asarray(kernel), "bias": jnp.full(4, bias)}}}


def kernel_of(variables):
    return np.asarray(variables["params"]["dense"]["kernel"])


def numpy_projection(weights, kept):
    """The array of that many entries nearest to the weights: all others are the smallest."""
    order = np.argsort(np.abs(weights), axis=None)[::-1][:kept]
    flat = np.zeros(weights.size, np.float32)
    flat[order] = weights.ravel()[order]
    return flat.reshape(weights.shape)


def test_the_projection_keeps_the_largest_as_they_are():
    weights = jax.random.normal(jax.random.key(0), KERNEL)
    found = keep_largest(weights, jnp.float32(RATE))
    assert_array_equal(found, numpy_projection(np.asarray(weights), kept=6))


def test_penalty_and_rounds_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(KERNEL).astype(np.float32) for _ in range(3 * EVERY)]
    link = admm({PATH: RATE}, RHO, GROWTH, EVERY)
    state = link.init(tree(weights[0]))
    sparse, dual, rho = numpy_projection(weights[0], 6), np.zeros(KERNEL, np.float32), RHO
    for step, w in enumerate(weights):
        if step > 0 and step % EVERY == 0:
            sparse = numpy_projection(w + dual, 6)
            dual, rho = dual + w - sparse, rho * GROWTH
        gradient, state = link.update(tree(np.ones(KERNEL, np.float32), bias=2.0), state, tree(w))
        assert_allclose(kernel_of(gradient), 1 + rho * (w - sparse + dual), rtol=1e-5, atol=1e-6)
        assert_array_equal(gradient["params"]["dense"]["bias"], np.full(4, 2.0))
        assert_array_equal(kernel_of(state.sparse), sparse)
        assert_allclose(kernel_of(state.dual), dual, rtol=1e-6, atol=1e-6)
    assert state.count == len(weights)
    assert state.rho == pytest.approx(RHO * GROWTH**2)


def test_a_quadratic_ends_in_its_best_sparse_solution():
    """The sparse minimum of ||W - T||^2 keeps the largest entries of T, at T's values."""
    rng = np.random.default_rng(1)
    sizes = np.concatenate([np.linspace(2, 3, 6), np.linspace(0, 1, 18)])
    target = jnp.float32(rng.permutation(sizes * rng.choice([-1, 1], 24)).reshape(KERNEL))
    optimizer = optax.chain(admm({PATH: RATE}, 0.05, 1.1, 20), optax.sgd(0.1))
    weights = tree(jax.random.normal(jax.random.key(2), KERNEL))

    def update(_, carry):
        weights, state = carry
        gradient = tree(weights["params"]["dense"]["kernel"] - target)
        updates, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, updates), state

    before = kernel_of(weights)
    weights, _ = jax.lax.fori_loop(0, 800, update, (weights, optimizer.init(weights)))
    solution = numpy_projection(np.asarray(target), kept=6)
    assert np.abs(before - solution).max() > 1
    small = solution == 0
    # The weights that go are near zero before they are cut off.
    assert np.abs(kernel_of(weights)[small]).max() < 0.1 * np.abs(target)[small].max()
    assert_array_equal(numpy_projection(kernel_of(weights), 6) != 0, ~small)
    assert_allclose(kernel_of(weights)[~small], solution[~small], atol=0.1)


def test_it_needs_the_weights():
    link = admm({PATH: RATE}, RHO, GROWTH, EVERY)
    state = link.init(tree(np.ones(KERNEL, np.float32)))
    with pytest.raises(ValueError, match="params=None"):
        link.update(tree(np.ones(KERNEL, np.float32)), state)


def test_all_weights_train_and_the_scores_follow_them():
    params = tree(jax.random.normal(jax.random.key(0), KERNEL))["params"]
    variables = make_prunable({"params": params}, {PATH[1:]: RATE}, 0.1, "weight")
    assert UNMASKED.seen(variables) is params
    moved = {**variables, "params": jax.tree.map(lambda leaf: 2 * leaf[::-1], params)}
    settled = UNMASKED.follow(moved, variables, params, 1)
    kept = bake(settled)["params"]["dense"]["kernel"]
    assert_array_equal(kept, numpy_projection(kernel_of(moved), kept=6))
