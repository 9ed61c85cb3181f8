"""The optimiser of a stage: what is clipped, and what is not."""

import jax
import jax.numpy as jnp
import optax
import pytest
from numpy.testing import assert_allclose

from harp_jax import native, parallel
from harp_jax.training import optim

VARIABLES = {"scores": {"a": jnp.array([1.0, -2.0])}, "rates": {"a": jnp.float32(0.5)}}
GRADIENT = {"scores": {"a": jnp.array([3.0, 0.0])}, "rates": {"a": jnp.float32(4.0)}}  # norm 5
PULL = 0.25  # what the compression loss adds to the rates' gradient
DECAY = 0.1


def first_step(clip_norm):
    """What moves the variables in a step of learning rate 1 without momentum."""
    pull = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u + PULL, updates))
    optimizer = optim.optimizer(lambda _: 1.0, 0.0, DECAY, pull, clip_norm)
    return optimizer.update(GRADIENT, optimizer.init(VARIABLES), VARIABLES)[0]


@pytest.mark.parametrize(
    ("clip_norm", "share"), [(None, 1.0), (5.5, 1.0), (2.0, 0.4), (0.05, 0.01)]
)
def test_clips_the_gradient_but_no_compression_loss_nor_decay(clip_norm, share):
    update = first_step(clip_norm)
    scores = share * GRADIENT["scores"]["a"] + DECAY * VARIABLES["scores"]["a"]
    assert_allclose(update["scores"]["a"], -scores, rtol=1e-6)
    assert_allclose(update["rates"]["a"], -(share * 4.0 + PULL + DECAY * 0.5), rtol=1e-6)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_an_update_copies_neither_weights_nor_momentum():
    update = optim.optimizer(lambda count: 0.1, 0.9, 1e-4)
    trainable = {"params": {"kernel": jnp.ones((3, 3, 128, 256))}}

    def step(state, gradient):
        trainable, momentum = state
        changes, momentum = update.update(parallel.mean(gradient), momentum, trainable)
        return optax.apply_updates(trainable, changes), momentum

    devices = parallel.local_devices()
    state, gradient = parallel.replicate(((trainable, update.init(trainable)), trainable), devices)
    compiled = parallel.parallel(step, devices, (0,)).lower(state, gradient).compile()
    size = trainable["params"]["kernel"].nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5 * size  # copies would add two
