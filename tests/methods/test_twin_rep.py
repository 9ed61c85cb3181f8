"""Twin-Rep: factors that train as plain SGD would train them, and the two phases of the masks."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import models
from harp_jax.methods import Setting
from harp_jax.methods.factors import factored
from harp_jax.methods.twin_rep import TwinRep, elementwise, mixed
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import schemes
from harp_jax.pruning.layers import bake, leaves_by_path, rates_of
from harp_jax.pruning.masks import kept_weights
from harp_jax.training import optim

PATH = ("params", "dense", "kernel")
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01


def tree(kernel, bias):
    return {"params": {"dense": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}}


def kernel_of(variables):
    return np.asarray(variables["params"]["dense"]["kernel"])


@pytest.mark.parametrize("split", [elementwise, mixed])
@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 5, 4)])
def test_factors_have_the_weights_as_product(split, shape):
    weights = jax.random.normal(jax.random.key(0), shape).at[..., 0].set(0.0)
    first, second = split(weights)
    product = first @ second if split is mixed else first * second
    assert_allclose(product, weights, rtol=1e-6)
    assert first.shape == shape
    if split is elementwise:
        assert_array_equal(jnp.abs(first), second)


@pytest.mark.parametrize("split", [elementwise, mixed])
def test_steps_are_those_of_sgd_on_the_factors(split):
    """Momentum and weight decay act on factors and on what has none, as in plain NumPy."""
    product = jnp.matmul if split is mixed else jnp.multiply
    link = functools.partial(factored, paths=[PATH], split=split, product=product)
    optimizer = optim.optimizer(lambda _: RATE, MOMENTUM, DECAY, wrap_weights=link)
    rng = np.random.default_rng(0)
    params = tree(rng.standard_normal((6, 4)), rng.standard_normal(4))
    state = optimizer.init(params)
    values = [np.asarray(each) for each in split(params["params"]["dense"]["kernel"])]
    values.append(np.asarray(params["params"]["dense"]["bias"]))
    buffers = [np.zeros_like(value) for value in values]
    for _ in range(5):
        g, to_bias = rng.standard_normal((6, 4)), rng.standard_normal(4)
        u, v, _ = values
        pulled = (g @ v.T, u.T @ g) if split is mixed else (g * v, g * u)
        for i, gradient in enumerate((*pulled, to_bias)):
            buffers[i] = MOMENTUM * buffers[i] + gradient + DECAY * values[i]
        values = [value - RATE * buffer for value, buffer in zip(values, buffers, strict=True)]
        updates, state = optimizer.update(tree(g, to_bias), state, params)
        params = optax.apply_updates(params, updates)
        expected = values[0] @ values[1] if split is mixed else values[0] * values[1]
        assert_allclose(kernel_of(params), expected, rtol=1e-4, atol=1e-5)
        assert_allclose(params["params"]["dense"]["bias"], values[2], rtol=1e-4, atol=1e-6)


def test_decay_on_the_factors_makes_small_weights_vanish():
    """Least squares with noise: what plain decay only shrinks, the factors bring to nearly zero."""
    target = jnp.float32([[2.0, -1.5, 0.04, -0.03, 0.02, 0.01]])
    weights = tree(jnp.ones((1, 6)) * jnp.sign(target), jnp.zeros(1))
    found = {}
    for name, link in (("plain", None), ("factors", _elementwise_link)):
        optimizer = optim.optimizer(lambda _: 0.05, 0.9, 0.1, wrap_weights=link)
        params, state = weights, optimizer.init(weights)
        step = jax.jit(optimizer.update)
        for _ in range(2000):
            gradient = tree(params["params"]["dense"]["kernel"] - target, jnp.zeros(1))
            updates, state = step(gradient, state, params)
            params = optax.apply_updates(params, updates)
        found[name] = kernel_of(params)
    assert_allclose(found["plain"], target / 1.1, rtol=1e-3)
    # decay / 2 * (u^2 + v^2) is decay * |w|: soft thresholding at 0.1.
    soft = np.sign(target) * np.maximum(np.abs(target) - 0.1, 0)
    assert_allclose(found["factors"], soft, atol=1e-3)


_elementwise_link = functools.partial(
    factored, paths=[PATH], split=elementwise, product=jnp.multiply
)


def test_factors_need_the_weights():
    params = tree(np.ones((6, 4)), np.ones(4))
    link = _elementwise_link(optax.sgd(0.1))
    with pytest.raises(ValueError, match="params=None"):
        link.update(params, link.init(params))


@functools.cache
def pruned(granularity):
    """A small network with its scheme, pruned at half of the weights or channels."""
    if granularity == "weight":
        model, shape = models.create("tiny", 10), (8, 8, 1)
    else:
        model, shape = ResNet(10, stages=(1, 1), width=4), (8, 8, 1)
    scheme = schemes.scheme(model, shape, granularity)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)))
    rates = dict.fromkeys(scheme.architecture.pruned, 0.5)
    return scheme, scheme.make_prunable(variables, rates, networks.MINIMUM)


def setting(scheme, epochs=4):
    return Setting(scheme, 0.5, networks.MINIMUM, updates_per_epoch=10, epochs=epochs, seed=0)


class NoProbe:
    """A probe that is never asked."""

    def logits_fn(self, variables):
        raise NotImplementedError

    batches = gradient = logits_fn


@pytest.mark.parametrize("granularity", ["weight", pytest.param("channel", marks=pytest.mark.slow)])
def test_the_network_is_dense_at_first_and_then_keeps_the_largest_products(granularity):
    scheme, variables = pruned(granularity)
    method, told = TwinRep(dense=0.5), setting(scheme)
    start = method.start(variables, told, NoProbe())
    masking = method.masking(told, start)
    jax.tree.map(assert_array_equal, masking.seen(start), variables["params"])
    jax.tree.map(assert_array_equal, bake(start)["params"], bake(variables)["params"])

    def after(before, factor, updates):
        moved = {**before, "params": jax.tree.map(lambda p: factor * p[::-1], before["params"])}
        return masking.follow(moved, before, None, jnp.int32(updates))

    dense = after(start, 2.0, 19)
    jax.tree.map(assert_array_equal, masking.seen(dense), dense["params"])
    cut = after(dense, 0.5, 20)
    fresh = scheme.make_prunable(
        {"params": cut["params"]}, dict.fromkeys(rates_of(cut), 0.5), networks.MINIMUM
    )
    jax.tree.map(
        lambda a, b: assert_allclose(a, jnp.abs(b), rtol=1e-6), cut["scores"], fresh["scores"]
    )
    seen = masking.seen(cut)
    jax.tree.map(assert_array_equal, seen, bake(cut)["params"])
    zeros = [(leaf == 0).mean() for leaf in leaves_by_path(seen).values() if leaf.ndim > 1]
    assert np.mean(zeros) > 0.3
    later = after(cut, 2.0, 21)
    jax.tree.map(assert_array_equal, later["scores"], cut["scores"])
    if granularity == "weight":
        for path, rate in rates_of(cut).items():
            leaf = np.asarray(leaves_by_path(seen)[path])
            assert (leaf != 0).sum() == kept_weights(rate, leaf.size)


@pytest.mark.parametrize(
    ("dense", "epochs", "expected"),
    [(0.1, 5, 1), (0.1, 4, 1), (0.1, 20, 2), (0.4, 5, 2), (0.9, 2, 1), (0.1, 1, 0), (0.0, 20, 0)],
)
def test_the_dense_phase_has_an_epoch_at_least_and_never_all(dense, epochs, expected):
    told = setting(pruned("weight")[0], epochs)
    assert TwinRep(dense).dense_epochs(told) == expected


def test_without_a_dense_phase_the_first_masks_stay():
    scheme, variables = pruned("weight")
    method, told = TwinRep(dense=0.0), setting(scheme)
    start = method.start(variables, told, NoProbe())
    masking = method.masking(told, start)
    followed = masking.follow(start, start, None, jnp.int32(1))
    jax.tree.map(assert_array_equal, followed["scores"], start["scores"])
    jax.tree.map(assert_array_equal, bake(start)["params"], bake(variables)["params"])
    jax.tree.map(assert_array_equal, masking.seen(start), bake(start)["params"])


def test_a_layer_of_zeros_is_masked_all_the_same():
    scheme, variables = pruned("weight")
    zeros = {**variables, "params": jax.tree.map(jnp.zeros_like, variables["params"])}
    method, told = TwinRep(dense=0.5), setting(scheme)
    masking = method.masking(told, zeros)
    for updates, count in ((19, 72), (20, 36)):
        after = masking.follow(zeros, zeros, None, jnp.int32(updates))
        ones = {**after, "params": jax.tree.map(jnp.ones_like, zeros["params"])}
        assert leaves_by_path(masking.seen(ones))["conv1", "kernel"].sum() == count


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_only_pruned_layers_are_factored(granularity):
    scheme, variables = pruned(granularity)
    wrap = TwinRep().links(setting(scheme), variables)["wrap_weights"]
    state = wrap(optax.sgd(0.1)).init({"params": variables["params"]})
    paths = {path[1:-1] for path in leaves_by_path(state.factors)}
    assert paths == set(scheme.architecture.pruned)
    for path, leaf in leaves_by_path(state.factors).items():
        shape = leaves_by_path(variables["params"])[path[1:-1]].shape
        is_matrix = granularity == "channel" and path[-1] == "second"
        assert leaf.shape == ((shape[-1],) * 2 if is_matrix else shape)
