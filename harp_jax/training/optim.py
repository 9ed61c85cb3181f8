"""Learning-rate schedules and the optimiser of a stage, as optax chains."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harp_jax import ops


def cosine(epoch: Any, base: float, epochs: int) -> Any:
    """Computes cosine decay: base / 2 * (1 + cos(pi * (epoch - 1) / epochs)).

    This is the authors' schedule, one epoch behind the usual one: epoch 0 is just below `base`,
    epoch 1 is at `base`, and the last epoch does not reach zero. A stage of one epoch gets `base`,
    where the authors' rate is zero.
    """
    shift = 1 if epochs > 1 else 0
    return base * 0.5 * (1.0 + jnp.cos(math.pi * (epoch - shift) / epochs))


def step(epoch: Any, base: float, epochs: int) -> Any:
    """Computes step decay: `base`, a tenth from 75 % of the epochs on, a hundredth from 90 % on."""
    passed = (epoch >= 0.75 * epochs) + 1 * (epoch >= 0.9 * epochs)
    return base * 0.1**passed


SCHEDULES: dict[str, Callable[[Any, float, int], Any]] = {"cosine": cosine, "step": step}


def learning_rate(name: str, base: float, epochs: int, updates_per_epoch: int) -> optax.Schedule:
    """Builds a schedule that is constant within an epoch.

    Args:
        name: A key of `SCHEDULES`.
        base: Base learning rate, > 0.
        epochs: Epochs of the stage, >= 1.
        updates_per_epoch: Updates in an epoch, >= 1.

    Returns:
        A function from the number of updates done to the learning rate.
    """
    schedule = SCHEDULES[name]
    return lambda count: schedule(jnp.asarray(count) // updates_per_epoch, base, epochs)


def _trace(momentum: float) -> optax.GradientTransformation:
    """Builds `optax.trace` whose buffers are written in place, and so are the new weights.

    XLA computes a new buffer a second time for the new weights, from the old buffer and the old
    weights. It cannot overwrite these then, and copies all of both at the start of the step.
    """
    inner = optax.trace(momentum)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        updates, state = inner.update(updates, state, params)
        updates = jax.tree.map(ops.computed_once, updates)
        return updates, state._replace(trace=updates)

    return optax.GradientTransformation(inner.init, update)


def optimizer(
    schedule: optax.Schedule,
    momentum: float,
    weight_decay: float,
    compression_gradient: optax.GradientTransformation | None = None,
    clip_norm: float | None = None,
    tie: optax.GradientTransformation | None = None,
    penalty_gradient: optax.GradientTransformation | None = None,
    wrap_weights: Callable[[optax.GradientTransformation], optax.GradientTransformation]
    | None = None,
    after_scores: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """Builds the authors' SGD, with the gradient of the compression loss added for the rates.

    Every trained leaf gets g += weight_decay * p; buffer = momentum * buffer + g;
    p -= learning rate * buffer. Weight decay applies to all of them: scores, rate
    logits, biases and BatchNorm too.

    Args:
        schedule: Learning rate from the number of updates.
        momentum: Momentum, in [0, 1).
        weight_decay: Weight decay, >= 0.
        compression_gradient: Adds gamma * dL_hw/dlogit to the tree {path: ...} of rate logits;
            None if rates do not train.
        clip_norm: Largest Euclidean norm, > 0, of the training loss's gradient over all that
            trains; a longer one is scaled down to it. The compression loss's gradient and weight
            decay are added after clipping, and layers that share channels are tied. None does not
            clip, as in the authors' code.
        tie: Transformation of the gradients of scores and of rates (the compression loss's too) for
            layers that share channels (`channels.share_gradients`).
        penalty_gradient: Adds a penalty's gradient to the tree {'params': ...} (`methods.admm`).
        wrap_weights: Makes the optimiser of the tree {'params': ...} from the SGD
            (`methods.factors`); None leaves it.
        after_scores: Transformation of the scores' updates, after the SGD (`methods.live`).

    Returns:
        A transformation over the trainable variables, {'params': ..., 'scores': ..., 'rates': ...}
        with any of them absent.
    """

    def sgd(*after: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            _trace(momentum),
            optax.scale_by_learning_rate(schedule),
            *after,
        )

    def tied(after: optax.GradientTransformation) -> optax.GradientTransformation:
        return after if tie is None else optax.chain(tie, after)

    rates = optax.chain(compression_gradient or optax.identity(), tied(sgd()))
    weights = sgd() if wrap_weights is None else wrap_weights(sgd())
    per_collection: dict[Hashable, Any] = {
        "params": weights if penalty_gradient is None else optax.chain(penalty_gradient, weights),
        "scores": tied(sgd(*filter(None, [after_scores]))),
        "rates": rates,
    }
    update = optax.partition(per_collection, lambda trainable: {name: name for name in trainable})
    if clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(clip_norm), update)
