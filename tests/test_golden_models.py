"""VGG-16 against the authors': logits, kept counts and sizes, from parameters made by a formula."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layout
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import models
from harp_jax.models.vgg import POOL, VGG16_PLAN
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import bake

ARRAYS = torch_layout.golden("models")
MODEL = models.create("vgg16_bn", 10)
STREAM, IMAGES_STREAM = 113_000, 118_000
MINIMUM = 0.01


def hashed(x):
    """A 32-bit integer hash; products wrap around."""
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def uniform(stream, shape):
    """Reproducible numbers in [0, 1), in the C order of PyTorch's layout."""
    start = hashed(np.array([stream]))
    return (hashed(np.arange(math.prod(shape), dtype=np.uint32) + start) / 2**32).reshape(shape)


def signed(stream, shape):
    return 2 * uniform(stream, shape) - 1


def scaled(stream, shape):
    return math.sqrt(6 / math.prod(shape[1:])) * signed(stream, shape)


def layer_shapes():
    """(layer, its norm or None, kernel shape in PyTorch's layout), in order of the network."""
    shapes, inputs = [], 3
    for width in VGG16_PLAN:
        if width != POOL:
            number = len(shapes) + 1
            shapes.append((f"conv{number}", f"norm{number}", (width, inputs, 3, 3)))
            inputs = width
    for number, (outputs, inputs) in enumerate([(256, 2048), (256, 256), (10, 256)], start=1):
        shapes.append((f"dense{number}", None, (outputs, inputs)))
    return shapes


def tensors():
    """The dense network's tensors and its scores by the authors' rule: each from its own stream."""
    found, stream, norms = {}, STREAM, []

    def add(name, make):
        nonlocal stream
        found[name] = make(stream)
        stream += 1

    for layer, norm, shape in layer_shapes():
        width = shape[:1]
        add(f"{layer}.weight", lambda s, shape=shape: scaled(s, shape))
        if norm is None:
            add(f"{layer}.bias", lambda s, width=width: 0.1 * signed(s, width))
        add(f"{layer}.popup_scores", lambda s, shape=shape: scaled(s, shape))
        stream += 1  # the rate logits are listed
        if norm is not None:
            add(f"{norm}.weight", lambda s, width=width: 1 + 0.1 * signed(s, width))
            add(f"{norm}.bias", lambda s, width=width: 0.1 * signed(s, width))
            norms.append((norm, width))
    for norm, width in norms:
        add(f"{norm}.running_mean", lambda s, width=width: 0.1 * signed(s, width))
        add(f"{norm}.running_var", lambda s, width=width: 0.5 + uniform(s, width))
    return found


@pytest.fixture(scope="module")
def pruned():
    """Variables of the authors' pruned network before its kernels are multiplied by their gain."""
    arrays = tensors()
    layers = [layer for layer, _, _ in layer_shapes()]
    arrays |= {
        f"{layer}.k_score": logit
        for layer, logit in zip(layers, ARRAYS["weight/k_score"], strict=True)
    }
    names = {name.rsplit(".", 1)[0]: name.rsplit(".", 1)[0] for name in arrays}
    tree = torch_layout.variables(arrays, names, {"dense1": (2, 2, 512)})
    tree["minimum_rates"] = jax.tree.map(lambda _: MINIMUM, tree["rates"])
    return tree


@functools.partial(jax.jit, static_argnames="train")
def logits(variables, images, train):
    return MODEL.apply(variables, images, train=train, mutable=["batch_stats"])[0]


def check_logits(variables, case):
    images = jnp.float32(torch_layout.images(uniform(IMAGES_STREAM, (4, 3, 32, 32))))
    assert_allclose(
        logits(variables, images, False), ARRAYS[f"{case}/logits_eval"], rtol=0, atol=5e-6
    )
    # Here the last layers normalise by 16 values each, which amplifies rounding.
    assert_allclose(
        logits(variables, images, True), ARRAYS[f"{case}/logits_train"], rtol=0, atol=3e-5
    )


def test_dense_vgg16(pruned):
    dense = {name: pruned[name] for name in ("params", "batch_stats")}
    check_logits(jax.tree.map(jnp.float32, dense), "dense")


def test_pruned_vgg16(pruned):
    gains = dict(zip((name for name, _, _ in layer_shapes()), ARRAYS["weight/gain"], strict=True))
    params = {
        layer: {**leaves, "kernel": leaves["kernel"] * np.float64(gains[layer])}
        if layer in gains
        else leaves
        for layer, leaves in pruned["params"].items()
    }
    plain = jax.jit(bake)(jax.tree.map(jnp.float32, {**pruned, "params": params}))
    kept = [np.count_nonzero(plain["params"][layer]["kernel"]) for layer in gains]
    assert_array_equal(kept, ARRAYS["weight/n_kept"])
    check_logits(plain, "weight")


def test_vgg16_has_the_authors_layers_and_sizes():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 15_311_818
    costs = parameter_costs(shapes["params"])
    assert list(costs.values()) == ARRAYS["dense/n_weights"].tolist()
    assert [path[0] for path in costs] == [layer for layer, _, _ in layer_shapes()]
    assert sum(costs.values()) == 15_302_848
