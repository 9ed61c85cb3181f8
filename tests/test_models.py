"""Residual networks: gradients, initial values, names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax import models
from harp_jax.models.resnet import ResNet
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
