"""Residual networks: gradients, initial values, names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax import models
from harp_jax.models.resnet import ResNet
from harp_jax.models.wrn import WideResNet
from harp_jax.pruning.layers import kernel_paths, layer_name, leaves_by_path


@pytest.fixture(scope="module")
def resnet18():
    model = models.create("resnet18", 10)
    images = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def test_resnet18_gives_gradients_of_images_and_of_every_parameter(resnet18):
    model, variables, images = resnet18

    def loss(images, params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        assert logits.shape == (4, 10)
        return -jax.nn.log_softmax(logits)[:, 3].sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
        images, variables["params"]
    )
    assert np.isfinite(value)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert np.any(gradient != 0)


def test_resnet18_starts_with_the_defaults_of_pytorch(resnet18):
    params = leaves_by_path(resnet18[1]["params"])
    layers = {path[:-1]: params[path] for path in kernel_paths(resnet18[1]["params"])}
    bounds = {path: kernel[..., 0].size ** -0.5 for path, kernel in layers.items()}
    for path, kernel in layers.items():
        assert 0.97 * bounds[path] < np.abs(kernel).max() <= bounds[path]
        assert np.mean(kernel**2) == pytest.approx(bounds[path] ** 2 / 3, rel=0.1)
    bias = params["dense1", "bias"]
    assert 0 < np.abs(bias).max() <= bounds["dense1",]
    assert bias.min() < 0 < bias.max()


def test_residual_layers_of_any_depth_come_in_order_of_the_network():
    network = functools.partial(ResNet, num_classes=10, width=4)
    params = jax.eval_shape(
        network(stages=(11, 1)).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1))
    )["params"]
    blocks = [f"conv2_{number}/conv{i}" for number in range(1, 12) for i in (1, 2)]
    last = ["conv3_1/conv1", "conv3_1/conv2", "conv3_1/shortcut", "dense1"]
    assert [layer_name(path) for path in kernel_paths(params)] == ["conv1", *blocks, *last]


@pytest.mark.parametrize(("depth", "widen"), [(10, 1), (16, 2), (28, 10)])
def test_sizes_of_wide_residual_networks_follow_the_formula(depth, widen):
    network = WideResNet(num_classes=10, depth=depth, widen=widen)
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    blocks, inputs, expected = (depth - 4) // 6, 16, 9 * 3 * 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        expected += 9 * width * (inputs + (2 * blocks - 1) * width)
        expected += inputs * width if inputs != width else 0
        expected += 2 * (inputs + (2 * blocks - 1) * width)  # BatchNorm in front of each
        inputs = width
    expected += 2 * inputs + (inputs + 1) * 10
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_a_wide_residual_network_starts_as_the_authors():
    images = jnp.zeros((1, 4, 4, 3))
    network = WideResNet(num_classes=10, depth=10, widen=2)
    params = leaves_by_path(jax.jit(network.init)(jax.random.key(0), images)["params"])
    for path in (path for path in params if path[-1] == "kernel" and path[0] != "dense1"):
        height, width, _, outputs = params[path].shape
        assert np.std(params[path]) == pytest.approx(
            np.sqrt(2 / (height * width * outputs)), rel=0.1
        )
    bound = params["dense1", "kernel"].shape[0] ** -0.5
    assert 0.97 * bound < np.abs(params["dense1", "kernel"]).max() <= bound
    assert not params["dense1", "bias"].any()


def test_a_depth_that_no_wide_residual_network_has():
    network = WideResNet(num_classes=10, depth=27, widen=4)
    with pytest.raises(ValueError, match="depth=27: allowed are 10, 16, 22"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
