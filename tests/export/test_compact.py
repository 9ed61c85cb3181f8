import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from harp_jax import models
from harp_jax.export import compact
from harp_jax.models.bottleneck import BottleneckResNet
from harp_jax.models.resnet import ResNet
from harp_jax.models.vgg import POOL, VGG
from harp_jax.pruning import channels, scheme, sparsity
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import bake, kernel_paths, layer_name, make_prunable


def randomised(variables):
    """Other values everywhere, so that no BatchNorm is the identity and no bias zero."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    drawn = [
        jax.random.uniform(k, leaf.shape, minval=0.1) for k, leaf in zip(keys, leaves, strict=True)
    ]
    signed = [
        x * jnp.where(jnp.arange(x.size) % 3 == 0, -0.7, 1.0).reshape(x.shape) if x.ndim > 1 else x
        for x in drawn
    ]
    return jax.tree.unflatten(structure, signed)


def apply(model, variables, images):
    return jax.jit(functools.partial(model.apply, train=False))(variables, images)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.create("tiny", 10), (8, 8, 1)),
        pytest.param(ResNet(10, stages=(1, 1), width=8), (8, 8, 3), marks=pytest.mark.slow),
        pytest.param(
            VGG(10, plan=(16, POOL, 32, 16), hidden=(32, 16)), (8, 8, 3), marks=pytest.mark.slow
        ),
    ],
    ids=["tiny", "resnet", "vgg"],
)
def test_the_smaller_network_has_the_same_outputs_and_the_counted_flops(model, shape):
    architecture = channels.trace(model, shape)
    images = jax.random.uniform(jax.random.key(1), (4, *shape))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    paths = [layer.path for layer in architecture.layers]
    rates = dict(zip(paths, np.linspace(0.2, 0.7, len(paths)), strict=True))
    variables = jax.jit(
        lambda: channels.make_prunable(randomised(shapes), rates, 0.0, architecture)
    )()
    small, kept = compact(model, variables, architecture)
    assert "scores" not in kept
    outputs = apply(model, jax.jit(bake)(variables), images)
    assert np.ptp(outputs, axis=0).max() > 1e-3
    np.testing.assert_allclose(
        apply(small, kept, images), outputs, rtol=1e-4, atol=1e-4 * abs(outputs).max()
    )
    rows = sparsity.layer_sparsity(variables, architecture)
    layers = trace_layers(small, shape)
    assert sum(layer.flops for layer in layers) == sum(row.kept_flops for row in rows)
    assert sum(np.prod(layer.kernel) for layer in layers) == sum(row.kept for row in rows)
    names = [layer_name(path) for path in paths]
    assert [layer.kernel for layer in layers] == [
        kept["params"][name]["kernel"].shape for name in names
    ]


def pruned(model, shape, rate):
    """Variables with other values everywhere, of which every layer keeps few weights."""
    images = jnp.zeros((1, *shape))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    rates = dict.fromkeys(kernel_paths(shapes["params"]), rate)
    return jax.jit(lambda: make_prunable(randomised(shapes), rates, 0.0, "weight"))()


@pytest.fixture(scope="module")
def sparse():
    """`tiny` with few weights left, its variables, and images."""
    model = models.create("tiny", 10)
    images = np.random.default_rng(0).uniform(size=(200, 8, 8, 1)).astype(np.float32)
    return model, pruned(model, (8, 8, 1), 0.03), images


@pytest.fixture(scope="module")
def small(sparse):
    return compact(*sparse)


def test_single_weights_leave_a_smaller_network_too(sparse, small):
    model, variables, images = sparse
    masked = jax.jit(bake)(variables)
    expected = apply(model, masked, images)
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(
        jax.jit(small.logits_fn)(images), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )
    assert list(small.widths) == ["conv1", "conv2", "dense1", "dense2"]
    assert small.widths["dense1"] < 16
    assert small.widths["dense2"] == 10
    dense = sparsity.layer_sparsity(variables, scheme(model, (8, 8, 1), "weight").architecture)
    rows = small.layers
    for row, before in zip(rows, dense, strict=True):
        kernel = small.variables["params"][row.layer]["kernel"]
        assert row.layer == before.layer
        assert row.parameters == kernel.size < before.parameters
        assert row.kept == np.count_nonzero(kernel) <= before.kept
        assert row.flops * before.parameters == before.flops * row.parameters
        assert row.kept_flops * row.parameters == row.flops * row.kept
    assert sum(row.flops for row in rows) < sum(row.flops for row in dense) / 2


def test_widths_can_be_rounded(sparse, small):
    model, variables, images = sparse
    even = compact(model, variables, images, round_to=8)
    assert small.widths != even.widths
    assert even.widths == {
        name: 10 if name == "dense2" else -(-width // 8) * 8 for name, width in small.widths.items()
    }
    with pytest.raises(ValueError, match="round_to=0: allowed are numbers >= 1"):
        compact(model, variables, images, round_to=0)


def test_images_are_checked_as_they_are_stored(sparse, small):
    model, variables, images = sparse
    raw = np.uint8(images[:20] * 255)
    assert compact(model, variables, raw).widths == small.widths
    for wrong in (raw[0], raw[:0]):
        with pytest.raises(ValueError, match=r"^images: of shape .*; allowed are batches"):
            compact(model, variables, wrong)


def test_images_of_another_size_are_refused(small):
    with pytest.raises(ValueError, match=r"images of shape \(9, 8, 1\): allowed are \(8, 8, 1\)"):
        small.logits_fn(jnp.zeros((1, 9, 8, 1)))


class Own(nn.Module):
    """Dense layers and a step."""

    step: str

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        if self.step == "batch":
            x = x * len(x)
        if self.step == "loop":
            x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x), None), x, length=3)
        if self.step == "turn":
            x = (x.T * jnp.ones(len(x)).reshape(1, -1)).T
        if self.step == "type":
            x = x.astype(jnp.bfloat16).astype(jnp.float32)
        if self.step == "none":
            return jnp.zeros((len(x), 3))
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("batch", r"logits differ by [\d.]+, the largest is [\d.]+; allowed is 0.0001 of it"),
        ("loop", "applies 'scan' to .*; allowed are steps without loops"),
        ("turn", r"applies 'transpose' to .*; allowed are .* an axis of images, and have it first"),
        ("type", "computes in bfloat16; allowed is float32"),
        ("none", "its logits do not depend on the images"),
    ],
)
def test_networks_that_no_nodes_stand_for_are_refused(step, message):
    model = Own(step)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match=f"^model: .*{message}"):
        compact(model, variables, jnp.ones((5, 2, 2, 1)))


def test_an_architecture_that_does_not_tell_the_size_of_images_is_refused():
    model = BottleneckResNet(10, stages=(1, 1), width=4)
    architecture = channels.Architecture(tuple(trace_layers(model, (64, 64, 3))))
    with pytest.raises(ValueError, match=r"outputs of \(32, 32, 4\).*allowed are images"):
        compact(model, {}, architecture)
    with pytest.raises(ValueError, match="has no layers"):
        compact(model, {}, channels.Architecture(()))


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.DISTINCT)
def test_every_network_is_compacted(name):
    model, row = models.create(name, 10), networks.row(name)
    variables = pruned(model, row.shape, 0.002 if row.weights > 1e6 else 0.02)
    images = np.random.default_rng(0).uniform(size=(4, *row.shape)).astype(np.float32)
    small = compact(model, variables, images)
    expected = apply(model, jax.jit(bake)(variables), images)
    np.testing.assert_allclose(
        jax.jit(small.logits_fn)(images), expected, rtol=0, atol=1e-5 * abs(expected).max()
    )
    assert sum(layer.parameters for layer in small.layers) < 0.75 * row.weights
