"""FLOPs against XLA's own count, on networks built at the widths that pruning keeps."""

import fractions
import functools
import math

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from hypothesis import given, settings

from harp_jax import models
from harp_jax.models.convnet import ConvNet
from harp_jax.models.resnet import ResNet
from harp_jax.pruning.budget import kept_total, settle, shift_to_budget
from harp_jax.pruning.channels import FlopsCost, trace
from harp_jax.pruning.costs import is_kernel_call, kernel_path, trace_layers
from harp_jax.pruning.masks import kept_channels

few = settings(max_examples=5, deadline=None, derandomize=True)
SHAPES = {name: row.shape for name, row in networks.ROWS.items()}
architecture_of = functools.cache(lambda name: trace(models.create(name, 10), SHAPES[name]))


def inside(size, module, axis):
    """Share of the products of a kernel's taps along an axis that are with pixels, not padding."""
    taps, stride = module.kernel_size[axis], np.broadcast_to(module.strides, 2)[axis]
    low, high = module.padding[axis]
    outputs = (size + low + high - taps) // stride + 1
    pixels = np.arange(outputs)[:, None] * stride - low + np.arange(taps)
    return fractions.Fraction(int(((pixels >= 0) & (pixels < size)).sum()), pixels.size)


def xla_and_ours(model, image_shape):
    """FLOPs of all kernels as XLA counts them, and ours by XLA's conventions.

    XLA counts every operation, so what it counts without the layers is subtracted. It adds the
    biases and leaves out products with padding.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    layers = {layer.path: layer for layer in trace_layers(model, image_shape)}
    expected, inputs = {}, []

    def watch(call, args, kwargs, context, replace):
        if not is_kernel_call(context):
            return call(*args, **kwargs)
        module, (x,) = context.module, args
        inputs.append(x)
        y = call(x)
        share, biases = fractions.Fraction(1), y.size if module.use_bias else 0
        if isinstance(module, nn.Conv):
            share = inside(x.shape[1], module, 0) * inside(x.shape[2], module, 1)
        expected[kernel_path(module)] = layers[kernel_path(module)].flops * share + biases
        return jnp.ones(y.shape) if replace else y

    def count(replace):
        def network(variables, images):
            inputs.clear()
            with nn.intercept_methods(functools.partial(watch, replace=replace)):
                return model.apply(variables, images, train=False), list(inputs)

        # A platform whose convolutions are XLA's own.
        lowered = jax.jit(network).trace(variables, images).lower(lowering_platforms=("tpu",))
        return lowered.cost_analysis()["flops"]

    return count(replace=False) - count(replace=True), sum(expected.values())


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (models.create("tiny", 10), "tiny"),
        (ConvNet(10, widths=(3, 7), hidden=11), "tiny"),
        (models.create("cnn", 10), "cnn"),
        (ConvNet(7, widths=(5, 1, 40), hidden=64), "cnn"),
        (models.create("resnet18", 10), "resnet18"),
        (ResNet(10, stages=(2, 2, 2, 2), width=12), "resnet18"),
    ],
    ids=["tiny", "tiny-narrow", "cnn", "cnn-narrow", "resnet18", "resnet18-narrow"],
)
def test_flops_are_those_that_xla_counts(model, name):
    theirs, ours = xla_and_ours(model, SHAPES[name])
    assert theirs == pytest.approx(float(ours), rel=2e-7)  # XLA adds up in float32


def test_flops_of_a_layer_by_hand():
    layers = {layer.path[0]: layer for layer in trace_layers(models.create("cnn", 10), (28, 28, 1))}
    assert list(layers) == ["conv1", "conv2", "conv3", "dense1", "dense2"]
    assert layers["conv2"].flops == 2 * 9 * 16 * 32 * 14 * 14
    assert layers["dense1"].flops == 2 * 3 * 3 * 64 * 128


def test_layers_are_found_again_by_a_second_trace():
    model = models.create("tiny", 10)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPES["tiny"])))
    assert trace_layers(model, SHAPES["tiny"]) == trace_layers(model, SHAPES["tiny"])
    assert len(trace_layers(model, SHAPES["tiny"])) == 4


def test_images_that_pooling_uses_up_are_refused():
    with pytest.raises(ValueError, match="nothing is left of them for layer 'conv11'"):
        trace_layers(models.create("vgg16_bn", 10), (8, 8, 3))


def test_a_layer_in_two_places_is_refused():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, name="dense")
            return layer(layer(x))

    with pytest.raises(ValueError, match="'dense' is called twice"):
        trace_layers(Twice(), (2, 2, 3))


@few
@given(st.lists(st.floats(2**-6, 1, width=32), min_size=4, max_size=4))
def test_kept_flops_are_those_of_the_narrow_network(rates):
    architecture = architecture_of("cnn")
    groups = architecture.prunable
    assert [group.size for group in groups] == [16, 32, 64, 128]
    by_path = {group.readers[0]: jnp.float32(a) for group, a in zip(groups, rates, strict=True)}
    kept = [int(kept_channels(a, g.size)) for g, a in zip(groups, by_path.values(), strict=True)]
    narrow = trace_layers(ConvNet(10, widths=kept[:3], hidden=kept[3]), SHAPES["cnn"])
    cost = FlopsCost(architecture)
    assert cost.kept(by_path) == sum(layer.flops for layer in narrow)
    shares = np.array([1, *rates, 1])  # of what each layer reads, and of what the last one writes
    flops = np.array([layer.flops for layer in architecture.layers])
    np.testing.assert_allclose(
        cost.soft_share(by_path), (flops * shares[:-1] * shares[1:]).sum() / flops.sum(), rtol=1e-5
    )


@pytest.mark.parametrize("width", [1, 16, 32])
def test_target_is_a_network_of_that_share_of_the_channels(width):
    cost = FlopsCost(architecture_of("resnet18"))
    narrow = trace_layers(ResNet(10, stages=(2, 2, 2, 2), width=width), SHAPES["resnet18"])
    flops = sum(layer.flops for layer in narrow)
    assert math.floor(cost.target_share(width / 64) * cost.total) == flops
    rates = {
        path: jnp.float32(width / 64) for g in cost.architecture.prunable for path in g.readers
    }
    assert cost.kept(rates) == flops
    np.testing.assert_allclose(cost.soft_share(rates), flops / cost.total, rtol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_every_channel_costs_the_total(name):
    cost = FlopsCost(architecture_of(name))
    assert cost.target_share(1.0) == 1.0
    rates = {path: jnp.float32(1.0) for g in cost.architecture.prunable for path in g.readers}
    assert cost.kept(rates) == cost.total
    np.testing.assert_allclose(cost.soft_share(rates), 1.0, rtol=1e-6)


@few
@given(st.lists(st.floats(-8, 5, width=32), min_size=12, max_size=12), st.floats(0.05, 1))
def test_shift_never_leaves_more_flops_than_the_target(logits, target):
    cost = FlopsCost(architecture_of("resnet18"))
    logits = {
        path: jnp.float32(logit)
        for group, logit in zip(cost.architecture.prunable, logits, strict=True)
        for path in group.readers
    }
    share, minimum = cost.target_share(target), 0.1 * target
    shifted, shift = shift_to_budget(logits, minimum, cost, share)
    assert kept_total(shifted, minimum, cost) <= share * cost.total
    settled = settle(shifted, minimum, cost)
    assert kept_total(settled, minimum, cost) == kept_total(shifted, minimum, cost)
    if shift < 0:
        smaller = {path: logit + jnp.float32(shift + 1e-3) for path, logit in logits.items()}
        assert kept_total(smaller, minimum, cost) > share * cost.total


def test_budget_out_of_reach_is_named_in_its_unit():
    cost = FlopsCost(architecture_of("tiny"))
    logits = {path: jnp.float32(0.0) for g in cost.architecture.prunable for path in g.readers}
    with pytest.raises(ValueError, match=r"at least one a layer\) keep \d+ FLOPs, .* allows 508$"):
        shift_to_budget(logits, 0.3, cost, 0.01)
