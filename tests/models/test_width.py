"""Networks with a multiple of their channels: shapes, structure, costs, and refusals."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import small_networks

from harp_jax import models
from harp_jax.models.convnet import ConvNet
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import schemes
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import leaves_by_path


@functools.cache
def shapes(name, width=1.0):
    model = models.create(name, 10, width=width)
    images = jax.ShapeDtypeStruct((1, *networks.row(name).shape), jnp.float32)
    made = jax.eval_shape(model.init, jax.random.key(0), images)
    return {path: leaf.shape for path, leaf in leaves_by_path(made).items()}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_layer_has_a_quarter_of_its_channels(name):
    full, quarter = shapes(name), shapes(name, 0.25)
    assert quarter.keys() == full.keys()
    (last,) = {path[-2] for path, shape in full.items() if shape[-1] == 10}
    for path, shape in full.items():
        inputs, outputs = shape[-2:] if len(shape) > 1 else (None, shape[-1])
        expected = outputs if path[-2] == last else outputs // 4
        assert quarter[path][-1] == expected, path
        if inputs is not None and inputs != networks.row(name).shape[-1]:
            assert quarter[path][-2] == inputs // 4, path


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("width", [0.001, 0.3])
def test_narrow_networks_keep_every_layer_and_shortcut(name, width):
    assert shapes(name, width).keys() == shapes(name).keys()
    assert min(min(shape) for shape in shapes(name, width).values() if shape) >= 1


@pytest.mark.parametrize("name", models.MODELS)
def test_width_one_is_the_network_itself(name):
    assert models.create(name, 10, width=1.0) == models.create(name, 10)


@pytest.mark.parametrize(
    ("width", "expected"), [(0.5, 2), (0.7, 4), (0.1, 1), (0.375, 2), (2.0, 10)]
)
def test_channels_are_rounded_to_the_nearest(width, expected):
    assert ResNet(10, stages=(1,), width=5).scaled(width).width == expected


def test_costs_are_those_of_the_narrow_network():
    shape = networks.row("cnn").shape
    narrow, by_hand = models.create("cnn", 10, width=0.25), ConvNet(10, (4, 8, 16), 32)
    assert trace_layers(narrow, shape) == trace_layers(by_hand, shape)
    for granularity in ("weight", "channel"):  # whose budgets are of weights and of FLOPs
        quarter, full = (
            schemes.scheme(models.create("cnn", 10, width=width), shape, granularity).cost.total
            for width in (0.25, 1.0)
        )
        assert full / 16 < quarter < full / 8  # all layers but two are narrow at both ends


def test_a_narrow_network_computes_what_its_layers_say():
    model = models.create("tiny", 10, width=0.25)
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    by_hand = ConvNet(10, (2, 4), 8)
    expected = jax.jit(by_hand.apply)(variables, images)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, images), expected)


@pytest.mark.parametrize("width", [0.0, -1.0, 101.0, float("nan"), float("inf"), 1e-300])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match=r"^width=.*: allowed are numbers in \(0, 100\]$"):
        models.create("tiny", 10, width=width)


def test_own_networks_take_the_width_or_refuse_it():
    assert models.create("small_networks:of_width", 10, width=0.5).hidden == 4
    assert models.create("small_networks:of_width", 10).hidden == 8
    with pytest.raises(ValueError, match=r"small_networks:vgg': takes no 'width', which is 0.5"):
        models.create("small_networks:vgg", 10, width=0.5)
    assert isinstance(models.create("small_networks:vgg", 10, width=1.0), small_networks.VGG)
