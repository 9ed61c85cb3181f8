"""The compression loss, its weight over the epochs and the schedules, against the authors'."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layout
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.pruning.compression import (
    add_compression_gradient,
    compression_loss,
    soft_rate,
    stepwise_gamma,
    target_reached,
)
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.training import optim

ARRAYS = torch_layout.golden("hw")
COSTS = ARRAYS["sizes"].tolist()
TARGET, MINIMUM, GAMMA0 = 0.1, 0.01, 0.01


def rates(logits):
    return [rate_from_logit(logit, MINIMUM) for logit in logits]


@pytest.mark.parametrize("prefix", ["tab", "seq"])
def test_loss_and_soft_rate(prefix):
    loss = jax.vmap(lambda logits: compression_loss(rates(logits), COSTS, TARGET))
    rate = jax.vmap(lambda logits: soft_rate(rates(logits), COSTS))
    logits = ARRAYS[f"{prefix}_k_score"]
    assert_allclose(rate(logits), ARRAYS[f"{prefix}_rate"], rtol=1e-6)
    assert_allclose(loss(logits), ARRAYS[f"{prefix}_loss"], rtol=1e-6, atol=1e-6)


def test_gradient_of_the_loss_reaches_the_logits():
    gradient = jax.vmap(jax.grad(lambda x: compression_loss(rates(x), COSTS, TARGET)))
    ours = gradient(ARRAYS["tab_k_score"])
    assert_allclose(ours, ARRAYS["tab_dloss"], rtol=1e-5, atol=1e-9)
    assert_array_equal(ours[ARRAYS["tab_loss"] == 0], 0.0)


def test_gamma_grows_and_freezes():
    rule = stepwise_gamma(GAMMA0)
    state = rule.init()
    for epoch, loss in enumerate(jnp.asarray(ARRAYS["seq_loss"])):
        assert_allclose(state.gamma, ARRAYS["seq_gamma"][epoch], rtol=1e-6)
        assert bool(target_reached(loss)) == bool(ARRAYS["seq_reached"][epoch])
        state = rule.update(state, loss)
        frozen = ARRAYS["seq_frozen_after"][epoch]
        assert bool(state.frozen) == np.isfinite(frozen)
        if state.frozen:
            assert_allclose(state.gamma, frozen, rtol=1e-6)
    assert bool(state.frozen)


def test_gradient_transformation_follows_the_same_epochs():
    transformation = add_compression_gradient(COSTS, TARGET, MINIMUM, GAMMA0, updates_per_epoch=2)
    update = jax.jit(transformation.update)
    state = transformation.init(ARRAYS["seq_k_score"][0].tolist())
    nothing = [jnp.float32(0.0)] * len(COSTS)
    before = list(ARRAYS["seq_k_score"][0])
    for epoch, row in enumerate(ARRAYS["seq_k_score"]):
        logits = list(row)
        # The epoch's first step sees the rates as the last epoch left them: that is its end check.
        _, state = update(nothing, state, before)
        ours, state = update(nothing, state, logits)
        assert_allclose(state.gamma.gamma, ARRAYS["seq_gamma"][epoch], rtol=1e-6)
        assert_allclose(ours, ARRAYS["seq_dgammaloss"][epoch], rtol=1e-5, atol=1e-9)
        before = logits


def test_schedules_are_the_authors():
    cases = torch_layout.golden("schedules")
    for name, expected in cases.items():
        kind, base, epochs, _ = name.split("_")
        base, epochs = float(base.removeprefix("lr")), int(epochs.removeprefix("E"))
        schedule = optim.learning_rate(kind, base, epochs, updates_per_epoch=3)
        ours = schedule(np.arange(3 * epochs)).reshape(epochs, 3)
        assert_allclose(ours, np.repeat(expected[:, None], 3, 1), rtol=1e-5)
    assert len(cases) == 8
