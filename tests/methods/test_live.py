"""Pruning on live connections: which units are dead, what becomes of them, how rates learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from harp_jax import models
from harp_jax.methods import PLAIN, Live, Setting
from harp_jax.methods.harp import Harp
from harp_jax.methods.live import keep_zeros, live_masking
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import channels, schemes
from harp_jax.pruning.layers import (
    bake,
    kernel_paths,
    leaves_by_path,
    make_prunable,
    masked_kernel,
    tree_of_leaves,
)
from harp_jax.pruning.live import live_kernel, live_units, live_weights, unreached
from harp_jax.pruning.rates import logit_from_rate
from harp_jax.training import optim

NETWORKS = {
    "tiny": (models.create("tiny", 10), (8, 8, 1)),
    "residual": (ResNet(10, stages=(1, 1), width=4), (8, 8, 1)),
}


@functools.cache
def groups_of(name):
    return channels.trace(*NETWORKS[name]).groups


@functools.cache
def shapes_of(name):
    model, shape = NETWORKS[name]
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))


@functools.cache
def pruned(name, rate, seed):
    """Variables of a network with random weights; the scores rank them otherwise."""
    paths = kernel_paths(shapes_of(name)["params"])
    leaves, generator = leaves_by_path(shapes_of(name)["params"]), np.random.default_rng(seed)

    def draw():
        return tree_of_leaves(
            {path: jnp.float32(generator.normal(size=leaves[path].shape)) for path in paths}
        )

    variables = make_prunable({"params": draw()}, dict.fromkeys(paths, rate), 0.001, "weight")
    return {**variables, "scores": draw()}


def dead_units(name, params):
    """By NumPy, the (group, unit)s that nothing writes or nothing reads."""
    kernels = {path: np.asarray(leaf) != 0 for path, leaf in leaves_by_path(params).items()}
    found = set()
    for number, group in enumerate(groups_of(name)):
        for unit in range(group.size):
            writes = any(kernels[path][..., unit].any() for path in group.writers)
            reads = any(kernels[path][..., unit :: group.size, :].any() for path in group.readers)
            if group.prunable and not (writes and reads):
                found.add((number, unit))
    return found


def weights_at(name, dead):
    """By path, which weights write or read one of some units."""
    leaves = leaves_by_path(shapes_of(name)["params"])
    at = {path: np.zeros(leaves[path].shape, bool) for path in leaves if path[-1] == "kernel"}
    for number, unit in dead:
        group = groups_of(name)[number]
        for path in group.writers:
            at[path][..., unit] = True
        for path in group.readers:
            at[path][..., unit :: group.size, :] = True
    return at


masked = jax.jit(masked_kernel)  # compiled once for every shape


@pytest.mark.parametrize("name", NETWORKS)
def test_dead_units_lose_all_their_weights_scores_and_the_others_keep_theirs(name):
    variables = pruned(name, 0.02, seed=0)
    params = bake(variables, masked)["params"]
    dead = dead_units(name, params)
    assert len(dead) > 3
    for number, group in enumerate(groups_of(name)):
        if group.prunable:
            alive = np.asarray(live_units(group, leaves_by_path(params)))
            expected = [(number, unit) not in dead for unit in range(group.size)]
            assert_array_equal(alive, expected)
    followed = jax.jit(live_masking(groups_of(name)).follow)(variables, variables, params, 1)
    scores, old = leaves_by_path(followed["scores"]), leaves_by_path(variables["scores"])
    for path, gone in weights_at(name, dead).items():
        assert_array_equal(scores[path], np.where(gone, 0.0, old[path]))
    for key in ("params", "rates", "minimum_rates"):
        jax.tree.map(assert_array_equal, followed[key], variables[key])


@functools.cache
def step_of_tiny():
    """A step whose update adds noise to the scores; beside it, the params that it has seen."""
    masking, zeros = live_masking(groups_of("tiny")), keep_zeros()

    @jax.jit
    def step(variables, noise):
        params = masking.seen(variables)
        noise, _ = zeros.update(noise, zeros.init(variables["scores"]), variables["scores"])
        scores = jax.tree.map(jnp.add, variables["scores"], noise)
        return masking.follow({**variables, "scores": scores}, variables, params, 1), params

    return step


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16))
@pytest.mark.slow
def test_the_dead_stay_dead_and_the_masks_waste_nothing_in_the_end(seed):
    """Whatever updates do to the scores, also from momentum; kept weights end at live units."""
    generator = np.random.default_rng(seed)
    variables, dead = pruned("tiny", 0.05, seed % 8), set()
    for step in range(12):
        noise = jax.tree.map(
            lambda leaf, size=0.1 * (step < 4): size * generator.normal(size=leaf.shape),
            variables["scores"],
        )
        variables, params = step_of_tiny()(variables, jax.tree.map(jnp.float32, noise))
        dead |= dead_units("tiny", params)
        scores = leaves_by_path(variables["scores"])
        assert all(
            (scores[path][gone] == 0).all() for path, gone in weights_at("tiny", dead).items()
        )
    kept = {path: leaf != 0 for path, leaf in leaves_by_path(params).items()}
    for path in kept:
        if (leaves_by_path(variables["scores"])[path] != 0).sum() >= kept[path].sum():
            assert not (kept[path] & weights_at("tiny", dead)[path]).any()


def test_zero_scores_stay_so_whatever_their_momentum():
    """In Free-AT several updates follow each other before units are looked at again."""
    setting = Setting(
        schemes.scheme(*NETWORKS["tiny"], "weight"),
        0.2,
        0.001,
        updates_per_epoch=10,
        epochs=2,
        seed=0,
    )
    variables = pruned("tiny", 0.2, seed=0)
    links = Live(Harp()).links(setting, variables)
    update = optim.optimizer(lambda _: 0.1, 0.9, 5e-4, **links)
    trained = {name: variables[name] for name in ("scores", "rates")}
    dead = jax.tree.map(
        lambda leaf: jnp.arange(leaf.size).reshape(leaf.shape) % 3 == 0, trained["scores"]
    )
    state, gradient = update.init(trained), jax.tree.map(jnp.ones_like, trained)
    for step in range(4):
        if step == 2:  # they have momentum by then
            trained["scores"] = jax.tree.map(
                lambda leaf, gone: jnp.where(gone, 0.0, leaf), trained["scores"], dead
            )
        updates, state = update.update(gradient, state, trained)
        trained = optax.apply_updates(trained, updates)
    jax.tree.map(lambda leaf, gone: assert_array_equal(leaf == 0, gone), trained["scores"], dead)


def test_the_masks_are_harps_and_so_are_the_gradients_but_for_the_rates():
    key = jax.random.split(jax.random.key(1), 3)
    kernel, scores, cotangent = (jax.random.normal(each, (3, 3, 4, 5)) for each in key)
    scores = scores.at[:, :, 1].set(0.0)
    logit, minimum = logit_from_rate(0.3, 0.01), jnp.float32(0.01)

    def pulled(masked):
        value, pull_back = jax.vjp(
            lambda *arguments: masked(*arguments, minimum), kernel, scores, logit
        )
        return value, pull_back(cotangent)

    (value, gradients), (theirs, expected) = pulled(live_kernel), pulled(masked_kernel)
    assert_array_equal(value, theirs)
    assert_array_equal(gradients[0], expected[0])
    assert_array_equal(gradients[1], expected[1])
    addable = (np.asarray(value) == 0) & (np.asarray(scores) != 0)
    by_rate = float(jax.grad(lambda x: 0.01 + 0.99 * jax.nn.sigmoid(x))(logit))
    wanted = by_rate * float((np.asarray(cotangent * kernel))[addable].sum())
    np.testing.assert_allclose(gradients[2], wanted, rtol=1e-5)
    assert abs(float(gradients[2] - expected[2])) > 0.1


def test_a_rate_with_nothing_left_to_add_is_not_held_up():
    kernel, scores = jnp.ones((4, 3)), jnp.zeros((4, 3)).at[0].set(1.0)
    gradient = jax.grad(lambda logit: -live_kernel(kernel, scores, logit, jnp.float32(0.01)).sum())
    assert gradient(logit_from_rate(0.5, 0.01)) == 0.0
    assert gradient(logit_from_rate(0.1, 0.01)) < 0.0


def test_live_weights_are_those_on_a_path_from_the_images_to_the_classes():
    def network(conv1, conv2, dense1, dense2):
        kernels = {"conv1": conv1, "conv2": conv2, "dense1": dense1, "dense2": dense2}
        return {layer: {"kernel": kernel} for layer, kernel in kernels.items()}

    shapes = shapes_of("tiny")["params"]
    arrays = [np.zeros(shapes[layer]["kernel"].shape) for layer in shapes if "norm" not in layer]
    conv1, conv2, dense1, dense2 = arrays
    conv1[0, 0, 0, :3] = 1  # three filters, of which the second layer reads one
    conv2[0, 0, 0, 5] = conv2[1, 1, 0, 5] = 1
    conv2[0, 0, 7, 6] = 1  # reads a filter that is dead
    dense1[5, 2] = 1
    dense1[6, 3] = 1  # reads what only reads the dead
    dense2[2, 9] = dense2[3, 0] = dense2[4, 0] = 1
    assert list(live_weights(network(*arrays), groups_of("tiny")).values()) == [1, 2, 1, 1]


def test_layers_that_the_images_do_not_reach():
    shapes = shapes_of("tiny")["params"]
    layers = [layer for layer in shapes if "norm" not in layer]
    tree = {layer: {"kernel": np.zeros(shapes[layer]["kernel"].shape)} for layer in layers}
    conv1, conv2, dense1, dense2 = (tree[layer]["kernel"] for layer in layers)
    conv1[0, 0, 0, 3] = conv2[0, 0, 4, 5] = dense1[5, 2] = dense2[2, 9] = 1
    groups = groups_of("tiny")
    assert unreached(tree, groups) == [(layer, "kernel") for layer in layers[1:]]
    conv2[0, 0, 3, 5] = 1
    assert unreached(tree, groups) == []
    dense2[2, 9] = 0  # then the images reach all layers but the last one
    dense2[3, 9] = 1
    assert unreached(tree, groups) == [("dense2", "kernel")]


def test_plain_masking_is_bake():
    variables = pruned("tiny", 0.3, seed=3)
    variables = {name: {"dense2": tree["dense2"]} for name, tree in variables.items()}
    seen, baked = jax.jit(lambda variables: (PLAIN.seen(variables), bake(variables)))(variables)
    jax.tree.map(assert_array_equal, seen, baked["params"])
    assert PLAIN.follow(variables, {}, None, 1) is variables
