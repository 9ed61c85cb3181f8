"""The training step: augmentation, masks, attack, loss and update in one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from harp_jax import models, parallel
from harp_jax.losses import Loss
from harp_jax.training import stages
from harp_jax.training.stages import Stage
from harp_jax.training.state import TrainState
from harp_jax.types import Images, Labels, Logits, Model, Scalar


def make_train_step(
    stage: Stage, model: Model
) -> Callable[[TrainState, dict[str, jax.Array]], TrainState]:
    """Builds the step that `parallel.parallel` maps over the devices; one batch, one update.

    The masks are computed once: `jax.vjp` of `bake` gives the plain kernels that the attack and the
    loss share, and the pull-back that turns the gradient of those kernels into straight-through
    gradients of scores, rates or weights. Only what the stage trains is differentiated.

    Args:
        stage: The stage.
        model: The network; its BatchNorm, if it has any, synchronises over `parallel.AXIS`.

    Returns:
        (state, batch) -> state, to be run under the axis `parallel.AXIS`. A batch holds this
        device's 'images' (uint8), 'labels' and 'index' (each example's place in its split).
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        keys = example_keys(state, batch["index"], stage.batches_per_epoch)
        images, labels = stage.augment(batch["images"], keys[:, 0]), batch["labels"]
        trainable, frozen = stages.split(state.variables, stage.trains)

        def seen(trainable: Any) -> Any:
            return stage.masking.seen(stages.merge(trainable, frozen))

        params, pull_back = jax.vjp(seen, trainable)
        batch_stats = state.variables.get("batch_stats")
        logits_fn = models.logits_fn(model, _collections(params, batch_stats))
        adversarial = images
        if stage.attack is not None:
            adversarial = stage.attack(logits_fn, images, labels, keys[:, 1])
        loss_fn = loss_of(model, stage.loss, batch_stats, images, adversarial, labels)
        (loss, (logits, batch_stats)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        regrow = stage.masking.regrow
        if regrow is None:
            gradient = parallel.mean(pull_back(gradient)[0])
        else:  # the mean first, which regrowth needs of masked weights too
            of_masked = parallel.mean(gradient)
            gradient = pull_back(of_masked)[0]
        if stage.ascend is not None:
            scores = stage.ascend(trainable["scores"], gradient["scores"])
            moved, pull_back = jax.vjp(seen, {**trainable, "scores": scores})
            gradient = parallel.mean(pull_back(jax.grad(loss_fn, has_aux=True)(moved)[0])[0])
        updates, opt_state = stage.optimizer.update(gradient, state.opt_state, trainable)
        trained: Any = optax.apply_updates(trainable, updates)
        variables = stage.masking.follow(
            stages.merge(trained, frozen), state.variables, params, state.step + 1
        )
        if regrow is not None:
            variables = regrow(variables, of_masked, state.step + 1)
        return state.replace(
            step=state.step + 1,
            variables=with_statistics(variables, batch_stats),
            opt_state=opt_state,
            sums=add_to_sums(state, loss, count_correct(logits, labels), len(labels)),
        )

    return train_step


def loss_of(
    model: Model,
    loss: Loss,
    batch_stats: Any,
    images: Images,
    adversarial: Images,
    labels: Labels,
) -> Callable[[Any], tuple[Scalar, tuple[Logits, Any]]]:
    """Builds the loss of a batch as a function of the params, with (logits, new batch_stats)."""

    def loss_fn(params: Any) -> tuple[Scalar, tuple[Logits, Any]]:
        forward = TrainingForward(model, params, batch_stats)
        value, logits = loss(forward, images, adversarial, labels)
        return value, (logits, forward.batch_stats)

    return loss_fn


class TrainingForward:
    """Forward passes in training mode; each call updates the running statistics, if any."""

    def __init__(self, model: Model, params: Any, batch_stats: Any):
        self.model, self.params, self.batch_stats = model, params, batch_stats

    def __call__(self, images: Images) -> Logits:
        """Computes the logits of images in [0, 1]."""
        variables = _collections(self.params, self.batch_stats)
        logits, changed = self.model.apply(variables, images, train=True, mutable=["batch_stats"])
        self.batch_stats = changed.get("batch_stats")
        return logits


def _collections(params: Any, batch_stats: Any | None) -> dict[str, Any]:
    return with_statistics({"params": params}, batch_stats)


def with_statistics(variables: dict[str, Any], batch_stats: Any | None) -> dict[str, Any]:
    """Returns variables with new running statistics; None stands for a network without any."""
    return variables if batch_stats is None else {**variables, "batch_stats": batch_stats}


def example_keys(state: TrainState, index: jax.Array, batches_per_epoch: int) -> jax.Array:
    """Folds keys `[batch, 2]` (augmentation, attack) from the epoch and each example's place."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step // batches_per_epoch)
    return jax.vmap(lambda place: jax.random.split(jax.random.fold_in(key, place)))(index)


def count_correct(logits: Logits, labels: Labels) -> Scalar:
    """Counts the examples that are classified correctly."""
    return (logits.argmax(-1) == labels).sum().astype(jnp.float32)


def add_to_sums(
    state: TrainState, loss: Scalar, correct: Scalar, examples: int
) -> dict[str, jax.Array]:
    """Adds this step's batch to the epoch's sums, the same on every device.

    Args:
        state: State before the step.
        loss: Mean loss of this device's examples.
        correct: Number of this device's examples that were classified correctly.
        examples: Number of this device's examples.

    Returns:
        The new `TrainState.sums`.
    """
    batch = parallel.total(
        {"loss": loss * examples, "correct": correct, "examples": jnp.float32(examples)}
    )
    sums = {name: state.sums[name] + value for name, value in batch.items()}
    first_bad = (state.sums["bad_step"] < 0) & ~jnp.isfinite(sums["loss"])
    return {**sums, "bad_step": jnp.where(first_bad, state.step, state.sums["bad_step"])}
