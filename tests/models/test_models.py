"""Networks: residual ones by hand, gradients, initial values, names; normalised images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from jax import lax

from harp_jax import models
from harp_jax.models.blocks import normalize
from harp_jax.models.bottleneck import BottleneckResNet
from harp_jax.models.resnet import ResNet
from harp_jax.models.wrn import WideResNet
from harp_jax.pruning.costs import is_kernel_call, parameter_costs
from harp_jax.pruning.layers import kernel_paths, layer_name, leaves_by_path, tree_of_leaves


@pytest.mark.parametrize("name", models.MODELS)
def test_sizes_are_those_of_the_table(name):
    row, model = networks.row(name), models.create(name, 10)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *row.shape)))["params"]
    assert sum(parameter_costs(params).values()) == row.weights
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == row.parameters


def test_the_table_has_no_other_networks_and_names_those_it_lacks():
    assert networks.ROWS.keys() <= models.MODELS.keys()
    with pytest.raises(pytest.fail.Exception, match="model 'mlp' has no row in ROWS of tests/net"):
        networks.row("mlp")


@pytest.fixture(scope="module")
def residual():
    """Like resnet18, with a block of every kind; narrower and not as deep."""
    model = ResNet(10, stages=(1, 2), width=32)
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 3))
    return model, jax.jit(model.init)(jax.random.key(0), images), images


def test_residual_networks_give_gradients_of_images_and_of_every_parameter(residual):
    model, variables, images = residual

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


def test_residual_networks_start_with_the_defaults_of_pytorch(residual):
    params = leaves_by_path(residual[1]["params"])
    layers = {path[:-1]: params[path] for path in kernel_paths(residual[1]["params"])}
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


def test_resnet50_has_the_published_size():
    shapes = jax.eval_shape(
        models.create("resnet50", 1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
    )
    params = leaves_by_path(shapes["params"])
    kernels = kernel_paths(shapes["params"])
    assert sum(leaf.size for leaf in params.values()) == 25_557_032
    assert sum(params[path].size for path in kernels) == 25_502_912
    assert len(kernels) == 54  # 1 + 3 * 16 + 4 shortcuts + 1
    names = [layer_name(path) for path in kernels]
    block = [f"conv2_1/{name}" for name in ("conv1", "conv2", "conv3", "shortcut")]
    assert names[:6] == ["conv1", *block, "conv2_2/conv1"]
    assert names[-2:] == ["conv5_3/conv3", "dense1"]


def bottleneck_by_hand(variables, images, blocks):
    """Logits, written down from the paper with the strides where torchvision has them.

    Args:
        blocks: (name, stride, whether it has a shortcut) of each.
    """
    params, stats = variables["params"], variables["batch_stats"]

    def unit(x, block, number, stride=1):
        conv = f"conv{number}" if number else "shortcut"
        norm = f"norm{number}" if number else "shortcut_norm"
        p, s = (params[block], stats[block]) if block else (params, stats)
        pad = p[conv]["kernel"].shape[0] // 2
        x = lax.conv_general_dilated(
            x,
            p[conv]["kernel"],
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        channels = {k: v.reshape(1, 1, 1, -1) for k, v in {**p[norm], **s[norm]}.items()}
        x = (x - channels["mean"]) / jnp.sqrt(channels["var"] + 1e-5)
        return x * channels["scale"] + channels["bias"]

    x = jnp.maximum(unit(images, None, 1, 2), 0)
    x = lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
    )
    for name, stride, projects in blocks:
        y = jnp.maximum(unit(x, name, 1), 0)
        y = jnp.maximum(unit(y, name, 2, stride), 0)
        x = unit(x, name, 0, stride) if projects else x
        x = jnp.maximum(unit(y, name, 3) + x, 0)
    return x.mean((1, 2)) @ params["dense1"]["kernel"] + params["dense1"]["bias"].reshape(1, -1)


def test_bottleneck_networks_are_those_of_the_paper():
    model = BottleneckResNet(num_classes=5, stages=(2, 1), width=4)
    images = jax.random.uniform(jax.random.key(1), (2, 30, 33, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32), shapes
    )
    kernels = kernel_paths(shapes["params"])
    params = leaves_by_path(variables["params"])
    params |= {path: (params[path] - 1) / params[path].shape[-2] for path in kernels}
    variables = {**variables, "params": tree_of_leaves(params)}
    blocks = [("conv2_1", 1, True), ("conv2_2", 1, False), ("conv3_1", 2, True)]
    expected = jax.jit(lambda v, x: bottleneck_by_hand(v, x, blocks))(variables, images)
    actual = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnet50" else ())
        for name in models.MODELS
    ],
)
def test_every_network_normalises_before_its_first_layer(name):
    """The first layer reads them so; the compiler drops all that comes after."""
    shape = networks.row(name).shape
    mean, deviation = (0.5, 0.4, 0.3)[: shape[-1]], (0.2, 0.3, 0.25)[: shape[-1]]
    images = jnp.asarray(np.random.default_rng(0).random((2, *shape)), jnp.float32)
    model = models.create(name, 10, normalization=[mean, deviation])
    shapes, read = jax.eval_shape(model.init, jax.random.key(0), images), []

    def watch(call, args, kwargs, context):
        if is_kernel_call(context):
            read.append(args[0])
        return call(*args, **kwargs)

    def first(variables, images):
        read.clear()
        with nn.intercept_methods(watch):
            model.apply(variables, images, train=False)
        return read[0].reshape(images.shape)

    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), shapes)
    expected = (np.asarray(images) - np.array(mean)) / np.array(deviation)
    np.testing.assert_allclose(jax.jit(first)(variables, images), expected, rtol=0, atol=1e-6)


NORMALIZATIONS = [
    ([(0.5,), (0.0,)], "allowed are deviations > 0"),
    ([(), ()], "allowed are deviations > 0"),
    ([(0.5, 0.5), (0.2,)], "as many finite means as deviations"),
    ([(float("nan"),), (0.2,)], "as many finite means as deviations"),
]


@pytest.mark.parametrize(("normalization", "said"), NORMALIZATIONS)
def test_a_wrong_normalization_is_refused(normalization, said):
    with pytest.raises(ValueError, match=said):
        models.create("tiny", 10, normalization=normalization)


def test_a_normalization_of_other_channels_is_refused():
    model = models.create("tiny", 10, normalization=[(0.5,) * 3, (0.2,) * 3])
    with pytest.raises(ValueError, match="normalization of 3 channels, images of 1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_images_of_half_precision_are_normalised_in_float32():
    images = np.random.default_rng(0).random((2, 4, 4, 3)).astype(np.float16)
    normalization = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    found = normalize(jnp.asarray(images), normalization)
    mean, deviation = map(np.float32, normalization)
    np.testing.assert_allclose(found, (np.float32(images) - mean) / deviation, atol=1e-6)
