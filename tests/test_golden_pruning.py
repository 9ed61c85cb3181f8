"""Rates, masks, layers and initial scores against the authors' numbers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layout
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import models, ops
from harp_jax.pruning.compression import compression_loss, soft_rate
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import bake
from harp_jax.pruning.masks import channel_mask, kept_channels, kept_weights, weight_mask
from harp_jax.pruning.rates import logit_from_rate, rate_from_logit
from harp_jax.pruning.scores import initial_scores
from harp_jax.pruning.strategies import STRATEGIES

WEIGHT = torch_layout.golden("mask_weight")
CHANNEL = torch_layout.golden("mask_channel")
LAYERS = ("conv0", "conv1", "conv2", "lin0", "lin1")


def test_rates_and_their_slopes_are_the_authors():
    arrays = torch_layout.golden("rates")
    rate = jax.vmap(jax.vmap(rate_from_logit, (0, None)), (None, 0))
    slope = jax.vmap(jax.vmap(jax.grad(rate_from_logit), (0, None)), (None, 0))
    logits, minima = jnp.asarray(arrays["k_score"]), jnp.float32(arrays["k_min"])
    assert_allclose(rate(logits, minima), arrays["k"], rtol=2e-6)
    assert_allclose(slope(logits, minima), arrays["dk"], rtol=1e-5, atol=1e-12)


def test_logits_of_rates_are_the_authors():
    arrays = torch_layout.golden("rates")
    logits = logit_from_rate(np.float32(arrays["init_k"]), np.float32(arrays["init_k_min"]))
    # The authors subtract in double precision. Where a rate is near its minimum, float32 loses
    # digits of the difference, and the logit of a small share moves by the share's relative error.
    share = (arrays["init_k"] - arrays["init_k_min"]) / (1 - arrays["init_k_min"])
    allowed = 2e-6 + 2.0**-23 * arrays["init_k"] / share + 2e-6 * abs(arrays["init_k_score"])
    assert (abs(logits - arrays["init_k_score"]) <= allowed).all()


def test_uniform_strategy_starts_vgg16_at_the_authors_rates():
    arrays = torch_layout.below(torch_layout.golden("rates"), "vgg16_bn_uniform")
    model = models.create("vgg16_bn", 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    sizes = parameter_costs(shapes["params"])
    assert sum(sizes.values()) == 15_302_848
    rates = STRATEGIES["uniform"](sizes, 0.1)
    assert_array_equal(list(rates.values()), arrays["k"])
    logits = logit_from_rate(np.float32(list(rates.values())), 0.01)
    assert_allclose(logits, arrays["k_score"], rtol=1e-6)
    start = dict(zip(sizes, rate_from_logit(logits, 0.01), strict=True))
    assert_allclose(list(start.values()), arrays["k_real"], rtol=1e-6)
    assert_allclose(soft_rate(start, sizes), 0.1, rtol=1e-6)
    assert_allclose(compression_loss(start, sizes, 0.1), 0.0, atol=5e-7)


@pytest.mark.parametrize("case", [f"m{i}" for i in range(6)])
def test_weight_masks_are_the_authors(case):
    arrays = torch_layout.below(WEIGHT, case)
    masks = jax.jit(jax.vmap(weight_mask, (None, 0)))(arrays["scores"], arrays["rates"])
    assert_array_equal(masks, arrays["masks"])
    assert_array_equal(masks.reshape(len(masks), -1).sum(1), arrays["kept"])


def test_kept_counts_are_the_authors_where_rounding_decides():
    arrays = torch_layout.below(WEIGHT, "edge")
    kept = np.array(
        [
            kept_weights(jnp.asarray(k), int(n))
            for k, n in zip(arrays["k"], arrays["n"], strict=True)
        ]
    )
    assert_array_equal(kept, arrays["n_kept"])
    assert_array_equal(arrays["n"] - kept, arrays["j"])


@pytest.mark.parametrize("case", ["ste0", "ste1", "ste2", "ste3"])
def test_straight_through_gradients_are_the_authors(case):
    arrays = torch_layout.below(WEIGHT, case)

    def loss(scores, kernel, logit):
        mask = weight_mask(scores, rate_from_logit(logit, arrays["k_min"]))
        return (arrays["c"] * (kernel * mask)).sum(), mask

    arguments = arrays["scores"], arrays["w"], arrays["k_score"]
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (value, mask), (scores, kernel, logit) = gradient(*arguments)
    assert_allclose(rate_from_logit(arrays["k_score"], arrays["k_min"]), arrays["k"], rtol=1e-6)
    assert_array_equal(mask, arrays["mask"])
    assert_allclose(value, arrays["L"], rtol=1e-4, atol=1e-5)
    assert_array_equal(scores, arrays["dscores"])
    assert_array_equal(kernel, arrays["dw"])
    # A sum of thousands of terms of both signs: its error is that of the terms, not of the sum.
    terms = arrays["c"] * arrays["w"]
    error = 1e-6 * abs(arrays["dk_score"] / terms.sum()) * abs(terms).sum()
    assert_allclose(logit, arrays["dk_score"], rtol=0, atol=error)


@pytest.mark.parametrize("case", ["c0_conv", "c0_lin", "c1_conv", "c1_lin", "c2_conv", "c2_lin"])
def test_channel_masks_are_the_authors_but_never_empty(case):
    arrays = torch_layout.below(CHANNEL, case)
    scores = jnp.asarray(arrays["scores"])
    masks = jax.jit(jax.vmap(channel_mask, (None, 0)))(scores, arrays["rates"])
    counts = kept_channels(jnp.asarray(arrays["rates"]), scores.size)
    assert_array_equal(counts, np.maximum(arrays["kept"], 1))
    # Where the authors keep nothing, and so disconnect the network, the best channel stays.
    best = abs(scores) == abs(scores).max()
    assert_array_equal(masks, np.where(arrays["kept"][:, None] == 0, best[None], arrays["masks"]))


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_layers_and_all_their_gradients_are_the_authors(granularity, case):
    arrays = torch_layout.below(WEIGHT if granularity == "weight" else CHANNEL, case)
    image = torch_layout.images if case.startswith("conv") else np.asarray
    score = torch_layout.kernel if granularity == "weight" else np.ravel
    params = {"kernel": torch_layout.kernel(arrays["weight"])}
    if "bias" in arrays:
        params["bias"] = arrays["bias"]
    layer = make_layer(arrays, params["kernel"].shape)

    def loss(params, scores, logit, x):
        pruned = {"scores": scores, "rates": logit, "minimum_rates": arrays["k_min"]}
        pruned = {name: {"kernel": jnp.float32(leaf)} for name, leaf in pruned.items()}
        y = layer.apply(bake({"params": params, **pruned}), x)
        return (y * image(arrays["c"])).sum(), y

    arguments = params, score(arrays["scores"]), arrays["k_score"], image(arrays["x"])
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    (value, y), (d_params, d_scores, d_logit, d_x) = gradient(*arguments)
    close = functools.partial(assert_allclose, rtol=1e-5, atol=1e-5)
    close(y, image(arrays["y"]))
    close(value, arrays["L"], atol=1e-4)
    close(d_x, image(arrays["dx"]))
    close(d_params["kernel"], torch_layout.kernel(arrays["dweight"]))
    close(d_scores, score(arrays["dscores"]))
    close(d_logit, arrays["dk_score"], atol=1e-4)
    if "bias" in arrays:
        close(d_params["bias"], arrays["dbias"])


def make_layer(arrays, shape):
    if len(shape) == 2:
        return nn.Dense(shape[-1])
    return nn.Conv(
        shape[-1],
        shape[:2],
        strides=int(arrays["stride"]),
        padding=int(arrays["padding"]),
        use_bias="bias" in arrays,
        conv_general_dilated=ops.conv_general_dilated,
    )


@pytest.mark.parametrize("case", LAYERS)
def test_initial_scores_are_the_authors(case):
    arrays = torch_layout.golden("scaled_scores")
    kernel = torch_layout.kernel(arrays[f"weight_{case}_weight"])
    scores = torch_layout.kernel(arrays[f"weight_{case}_scores"])
    assert_allclose(initial_scores(jnp.asarray(kernel), "weight"), scores, rtol=1e-6)
    # The authors mix channels; these are the same formula on the channels' own norms.
    kernel = torch_layout.kernel(arrays[f"channel_{case}_weight"])
    scores = arrays[f"channel_{case}_scores_correct"]
    assert_allclose(initial_scores(jnp.asarray(kernel), "channel"), scores, rtol=1e-6)
