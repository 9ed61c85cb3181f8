import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax import models
from harp_jax.export import compact
from harp_jax.models.vgg import POOL, VGG
from harp_jax.pruning import channels, sparsity
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import bake


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
        (models.create("cnn", 10), (28, 28, 1)),
        pytest.param(
            VGG(10, plan=(16, POOL, 32, 16), hidden=(32, 16)), (8, 8, 3), marks=pytest.mark.slow
        ),
    ],
    ids=["cnn", "vgg"],
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
    assert [layer.kernel for layer in layers] == [
        kept["params"][p[0]]["kernel"].shape for p in paths
    ]


def test_networks_with_joins_are_refused():
    with pytest.raises(ValueError, match="model=ResNet: allowed are ConvNet, VGG"):
        compact(models.create("resnet18", 10), {}, channels.Architecture(()))
