"""Free adversarial training: one backward pass serves the network and the perturbation.

Each batch is replayed a few times. One gradient updates the trainable variables down the loss and
the perturbation of the images up the loss, so that a replay costs no more than a step of natural
training. The next batch starts from the same perturbation; every epoch starts from zero.

Reference: Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019. As the authors of HARP
run it, each image is perturbed and clipped before the network, which may normalise it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from harp_jax import parallel
from harp_jax.losses import Loss
from harp_jax.training import stages
from harp_jax.training.stages import Stage
from harp_jax.training.state import TrainState
from harp_jax.training.step import (
    TrainingForward,
    add_to_sums,
    count_correct,
    example_keys,
    with_statistics,
)
from harp_jax.types import Images, Labels, Logits, Model, Scalar

GlobalImages = Float[Array, "global height width channels"]


def make_free_step(
    stage: Stage, model: Model
) -> Callable[[TrainState, dict[str, jax.Array]], TrainState]:
    """Builds the step that `parallel.parallel` maps over the devices; see `make_train_step`.

    A step takes one batch and makes several updates of the optimiser. The masks are computed once a
    replay, since each replay changes scores and rates; `Masking.follow` runs once a batch. The
    images are augmented once. Loss and accuracy in the epoch's sums are means over the replays.

    Args:
        stage: The stage. Its attack's epsilon is the radius of the L_inf ball and the length of
            a step in it, > 0.
        model: The network; its BatchNorm, if it has any, synchronises over `parallel.AXIS`.

    Returns:
        (state, batch) -> state, to be run under the axis `parallel.AXIS`. A global batch may be
        smaller than the state's perturbation; it then uses and changes the first ones.
    """
    assert stage.attack is not None
    epsilon, per_epoch = stage.attack.epsilon, stage.batches_per_epoch
    replays = stage.loss.updates_per_batch

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        keys = example_keys(state, batch["index"], per_epoch)
        images, labels = stage.augment(batch["images"], keys[:, 0]), batch["labels"]
        trainable, frozen = stages.split(state.variables, stage.trains)

        differentiate = _differentiated(model, stage.loss, images, labels)
        regrow = stage.masking.regrow

        def replay(carry: Any, _: None) -> tuple[Any, tuple[Scalar, Scalar]]:
            trainable, opt_state, stats, perturbation, _ = carry
            params, pull_back = jax.vjp(
                lambda tree: stage.masking.seen(stages.merge(tree, frozen)), trainable
            )
            (loss, (logits, stats)), (gradient, ascent) = differentiate(params, perturbation, stats)
            of_masked = None if regrow is None else parallel.mean(gradient)
            if of_masked is None:
                gradient = parallel.mean(pull_back(gradient)[0])
            else:  # the mean first, which regrowth needs of masked weights too
                gradient = pull_back(of_masked)[0]
            updates, opt_state = stage.optimizer.update(gradient, opt_state, trainable)
            trainable = optax.apply_updates(trainable, updates)
            # BatchNorm's statistics join the devices' losses: `ascent` is the gradient of their
            # sum. Its sign, all that is used, is that of their mean.
            moved = jnp.clip(perturbation + epsilon * jnp.sign(ascent), -epsilon, epsilon)
            carry = (trainable, opt_state, stats, moved, of_masked)
            return carry, (loss, count_correct(logits, labels))

        whole = jnp.where(state.step % per_epoch == 0, 0.0, state.perturbation)
        stats = state.variables.get("batch_stats")
        none = None if regrow is None else jax.tree.map(jnp.zeros_like, state.variables["params"])
        carry = (trainable, state.opt_state, stats, _own(whole, images), none)
        carry, (loss, correct) = lax.scan(replay, carry, length=replays)
        trainable, opt_state, stats, perturbation, of_masked = carry
        variables, updates = stages.merge(trainable, frozen), replays * (state.step + 1)
        params = stage.masking.seen(variables)
        variables = stage.masking.follow(variables, state.variables, params, updates)
        if regrow is not None:
            variables = regrow(variables, of_masked, updates)
        return state.replace(
            step=state.step + 1,
            variables=with_statistics(variables, stats),
            opt_state=opt_state,
            sums=add_to_sums(state, loss.mean(), correct.mean(), len(labels)),
            perturbation=_with(whole, perturbation),
        )

    return train_step


def _differentiated(model: Model, loss: Loss, images: Images, labels: Labels) -> Callable[..., Any]:
    """Builds the loss of a replay with its gradients, from one backward pass.

    Args:
        model: The network.
        loss: The loss of a replay.
        images: Images in [0, 1].
        labels: True classes.

    Returns:
        (params, perturbation, batch_stats) -> ((loss, (logits, new batch_stats)), (gradient of
        params, gradient of the perturbation)).
    """

    def loss_fn(params: Any, perturbation: Images, stats: Any) -> tuple[Scalar, tuple[Logits, Any]]:
        forward = TrainingForward(model, params, stats)
        value, logits = loss(forward, images, perturbed(images, perturbation), labels)
        return value, (logits, forward.batch_stats)

    return jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)


def perturbed(images: Images, perturbation: Images) -> Images:
    """Computes perturbed images in the box [0, 1].

    `jnp.clip` passes a gradient at the ends of its range, unlike `lax.clamp`: pixels of value 0 or
    1 start at an end and need a gradient to move.
    """
    return jnp.clip(images + perturbation, 0.0, 1.0)


def _own(whole: GlobalImages, images: Images) -> Images:
    """Returns the part of the global batch's perturbation that belongs to this device's images."""
    return lax.dynamic_slice_in_dim(whole, parallel.place() * len(images), len(images))


def _with(whole: GlobalImages, part: Images) -> GlobalImages:
    """Puts the devices' new parts into the global perturbation, the same on every device.

    So it is an array of the state like any other: saved once, restored on any number of devices.
    Every device holds a global batch of float images (154 MB for 256 images of 224x224), and the
    devices exchange it once a batch, not once a replay.
    """
    parts = parallel.gather(part)
    return lax.dynamic_update_slice_in_dim(whole, parts.reshape(-1, *part.shape[1:]), 0, axis=0)
