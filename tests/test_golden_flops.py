"""FLOPs of VGG16-BN and the compression loss on them, against the authors'.

Their counters differ from ours on purpose, and the test converts:

- they count one addition for every output of every layer, as for a bias, also where there is none;
- they prune the image's channels too, at the first layer's rate;
- their target takes round(rate * n) of everything, image channels, classes and the 2048 flattened
  features included, where ours prunes what channels there are and flattened features with them.

Their layers with stride 2 have fractional sizes, so that ResNet18 cannot be compared.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layout
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import models
from harp_jax.pruning.channels import FlopsCost, trace
from harp_jax.pruning.rates import rate_from_logit

ARRAYS = torch_layout.golden("hw")
TARGETS = {0: 0.1, 1: 0.5}


@functools.cache
def cost():
    return FlopsCost(trace(models.create("vgg16_bn", 10), (32, 32, 3)))


def outputs():
    return np.array([math.prod(layer.outputs) for layer in cost().architecture.layers])


def test_dense_flops_of_every_layer():
    flops = np.array([layer.flops for layer in cost().architecture.layers])
    assert_array_equal(flops + outputs(), ARRAYS["flops_vgg16_bn_layer"])
    total = cost().total + outputs().sum()
    assert_allclose(total, ARRAYS["flops_vgg16_bn_0_total"], rtol=1e-7)  # a sum in float32


@pytest.mark.parametrize("case", TARGETS)
def test_target(case):
    target, theirs = TARGETS[case], 0
    for layer in cost().architecture.layers:
        inputs, width = (round(n * target) for n in layer.kernel[-2:])
        taps, pixels = math.prod(layer.kernel[:-2]), math.prod(layer.outputs[:-1])
        theirs += pixels * width * (2 * taps * inputs + 1)
    assert theirs == ARRAYS[f"flops_vgg16_bn_{case}_target"]
    # What is left between the two targets is their image channels, classes and outputs.
    assert_allclose(cost().target_share(target) * cost().total, theirs, rtol=0.06)


def their_share(logits, minimum):
    """The authors' soft share of FLOPs: ours, with what they count besides."""
    rates = rate_from_logit(logits, minimum)
    layers = cost().architecture.layers
    by_path = {layer.path: rate for layer, rate in zip(layers, rates, strict=True)}
    first = layers[0]
    pruned = {path: rate for path, rate in by_path.items() if path != first.path}
    ours = cost().soft_share(pruned) * cost().total
    written = jnp.append(rates[1:], 1.0)
    images = first.flops * (rates[0] - 1.0) * written[0]
    return (ours + images + (outputs() * written).sum()) / ARRAYS["flops_vgg16_bn_0_total"]


@pytest.mark.parametrize("case", TARGETS)
def test_loss_and_its_gradient(case):
    arrays = {name.removeprefix(f"flops_vgg16_bn_{case}_"): array for name, array in ARRAYS.items()}
    share = arrays["target"] / arrays["total"]

    def loss(logits):
        rate = their_share(logits, 0.1 * TARGETS[case])
        return jnp.maximum(rate / share - 1.0, 0.0), rate

    function = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))
    (losses, rates), gradients = function(jnp.asarray(arrays["k_score"]))
    assert_allclose(rates, arrays["rate"], rtol=1e-5)
    assert_allclose(losses, arrays["loss"], rtol=1e-5, atol=1e-5)
    assert (losses > 0).any()
    assert (losses == 0).any()
    assert_allclose(gradients, arrays["dloss"], rtol=1e-4, atol=1e-6)
