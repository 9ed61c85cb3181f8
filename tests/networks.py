"""The `tiny` network's first variables, made once a session, and stages to train it in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from harp_jax import models
from harp_jax.data import to_unit
from harp_jax.losses import LOSSES
from harp_jax.methods import METHODS
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import make_prunable
from harp_jax.pruning.scores import Granularity
from harp_jax.training.stages import STREAMS, WEIGHTS, Stage

RATE, MINIMUM = 0.5, 0.02


@functools.cache
def tiny(granularity: Granularity | None = None) -> dict[str, Any]:
    """Variables for 8x8 gray images in 10 classes.

    Args:
        granularity: None for the dense network; else every layer is pruned at rate 0.5.

    Returns:
        The variables, with the same params for every granularity; not to be donated.
    """

    if granularity is None:
        init = jax.jit(models.create("tiny", 10).init)
        return dict(init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    dense = tiny()
    rates = dict.fromkeys(parameter_costs(dense["params"]), RATE)
    return jax.jit(lambda tree: make_prunable(tree, rates, MINIMUM, granularity))(dense)


def stage(mode, loss, optimizer, batches_per_epoch, attack=None, **others):
    """A stage that trains what `mode` does, on images as they are.

    Args:
        mode: 'pretrain', 'finetune' or a pruning method.
        loss: The training loss; its name for the default one.
        optimizer: Over what the mode trains.
        batches_per_epoch: Batches in an epoch.
        attack: Of the training step.
        others: Further fields of `Stage`.
    """
    loss = LOSSES[loss]() if isinstance(loss, str) else loss
    method = METHODS.get(mode)
    fields = {
        "name": "prune" if method else mode,
        "stream": method.stream if method else STREAMS[mode],
        "trains": method.trains if method else WEIGHTS,
        "learning_rate": lambda _: 0.1,
        "augment": lambda images, keys: to_unit(images),
    }
    return Stage(
        **fields | others,
        loss=loss,
        attack=attack,
        optimizer=optimizer,
        batches_per_epoch=batches_per_epoch,
    )
