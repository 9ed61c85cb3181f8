"""A small trained network for tests that compare the strength of attacks."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from harp_jax import models
from harp_jax.data import load
from harp_jax.losses import natural

STEPS, BATCH = 150, 128


@pytest.fixture(scope="session")
def digits():
    """The `tiny` network after a short natural training on digits, and 1,000 images that it saw.

    BatchNorm keeps its first statistics, which makes it an affine layer.

    Returns:
        Variables, images [1000, 8, 8, 1] and their labels.
    """
    split = load("digits", seed=0, validation_examples=150).train
    images, labels = jnp.asarray(split.images / np.float32(255)), jnp.asarray(split.labels)
    start = networks.tiny()
    optimizer = optax.adam(3e-3)

    def loss(params, batch):
        network = models.logits_fn(models.create("tiny", 10), {**start, "params": params})
        return natural(network(images[batch]), labels[batch])

    def step(number, carry):
        params, state = carry
        batch = jax.random.choice(jax.random.key(number), len(images), (BATCH,))
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        return optax.apply_updates(params, updates), state

    train = jax.jit(lambda carry: jax.lax.fori_loop(0, STEPS, step, carry))
    params, _ = train((start["params"], optimizer.init(start["params"])))
    return {**start, "params": params}, images[:1000], labels[:1000]
