"""The training step: augmentation, masks, attack, loss and update in one compiled program."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from harp_jax import models, parallel
from harp_jax.attacks import Attack
from harp_jax.losses.objectives import Objective
from harp_jax.pruning.masking import PLAIN, Masking
from harp_jax.training import stages
from harp_jax.training.state import TrainState
from harp_jax.types import Images, Labels, Logits, RawImages, Scalar

Augment = Callable[[RawImages, jax.Array], Images]
Ascend = Callable[[Any, Any], Any]


def make_train_step(
    model: nn.Module,
    objective: Objective,
    attack: Attack | None,
    optimizer: optax.GradientTransformation,
    mode: str,
    augment: Augment,
    steps_per_epoch: int,
    masking: Masking = PLAIN,
    ascend: Ascend | None = None,
) -> Callable[[TrainState, dict[str, jax.Array]], TrainState]:
    """Builds the step that `parallel.parallel` maps over the devices.

    The masks are computed once: `jax.vjp` of `bake` gives the plain kernels that the attack and the
    loss share, and the pull-back that turns the gradient of those kernels into straight-through
    gradients of scores, rates or weights. Only what the mode trains is differentiated.

    Args:
        model: Network whose BatchNorm synchronises over `parallel.AXIS`.
        objective: The training loss.
        attack: Finds the adversarial images, with BatchNorm in inference mode; None for a loss of
            clean images, which then stand in for them.
        optimizer: Over the trainable part of the variables.
        mode: A key of `stages.TRAINS`.
        augment: (uint8 images, one key per image) -> images in [0, 1].
        steps_per_epoch: Updates in an epoch.
        masking: How masks enter the step.
        ascend: (scores, their gradient) -> the scores at which the gradient of the update is taken
            (`sharpness.ascend`), with the same images; BatchNorm's statistics, the loss and the
            accuracy are those of the scores as they are. None takes it there, too.

    Returns:
        (state, batch) -> state, to be run under the axis `parallel.AXIS`. A batch holds this
        device's 'images' (uint8), 'labels' and 'index' (each example's place in its split).
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> TrainState:
        keys = example_keys(state, batch["index"], steps_per_epoch)
        images, labels = augment(batch["images"], keys[:, 0]), batch["labels"]
        trainable, frozen = stages.split(state.variables, mode)

        def seen(trainable: Any) -> Any:
            return masking.seen(stages.merge(trainable, frozen))

        params, pull_back = jax.vjp(seen, trainable)
        batch_stats = state.variables["batch_stats"]
        logits_fn = models.logits_fn(model, {"params": params, "batch_stats": batch_stats})
        adversarial = images
        if attack is not None:
            adversarial = attack(logits_fn, images, labels, keys[:, 1])
        loss_fn = _loss_of(model, objective, batch_stats, images, adversarial, labels)
        (loss, (logits, batch_stats)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        gradient = parallel.mean(pull_back(gradient)[0])
        if ascend is not None:
            scores = ascend(trainable["scores"], gradient["scores"])
            moved, pull_back = jax.vjp(seen, {**trainable, "scores": scores})
            gradient = parallel.mean(pull_back(jax.grad(loss_fn, has_aux=True)(moved)[0])[0])
        updates, opt_state = optimizer.update(gradient, state.opt_state, trainable)
        trained: Any = optax.apply_updates(trainable, updates)
        variables = masking.follow(stages.merge(trained, frozen), state.variables, params)
        return state.replace(
            step=state.step + 1,
            variables={**variables, "batch_stats": batch_stats},
            opt_state=opt_state,
            sums=add_to_sums(state, loss, count_correct(logits, labels), len(labels)),
        )

    return train_step


def _loss_of(
    model: nn.Module,
    objective: Objective,
    batch_stats: Any,
    images: Images,
    adversarial: Images,
    labels: Labels,
) -> Callable[[Any], tuple[Scalar, tuple[Logits, Any]]]:
    """The loss of a batch as a function of the params, with (logits, new batch_stats) beside it."""

    def loss_fn(params: Any) -> tuple[Scalar, tuple[Logits, Any]]:
        forward = TrainingForward(model, params, batch_stats)
        loss, logits = objective.loss(forward, images, adversarial, labels)
        return loss, (logits, forward.batch_stats)

    return loss_fn


class TrainingForward:
    """Forward passes in training mode; BatchNorm's running statistics pass from call to call."""

    def __init__(self, model: nn.Module, params: Any, batch_stats: Any):
        self.model, self.params, self.batch_stats = model, params, batch_stats

    def __call__(self, images: Images) -> Logits:
        """Logits of images in [0, 1]."""
        variables = {"params": self.params, "batch_stats": self.batch_stats}
        logits, changed = self.model.apply(variables, images, train=True, mutable=["batch_stats"])
        self.batch_stats = changed["batch_stats"]
        return logits


def example_keys(state: TrainState, index: jax.Array, steps_per_epoch: int) -> jax.Array:
    """Keys `[batch, 2]` (augmentation, attack), folded from the epoch and the example's place."""
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step // steps_per_epoch)
    return jax.vmap(lambda place: jax.random.split(jax.random.fold_in(key, place)))(index)


def count_correct(logits: Logits, labels: Labels) -> Scalar:
    """How many of the examples are classified rightly."""
    return (logits.argmax(-1) == labels).sum().astype(jnp.float32)


def add_to_sums(
    state: TrainState, loss: Scalar, correct: Scalar, examples: int
) -> dict[str, jax.Array]:
    """The epoch's sums with this step's batch, the same on every device.

    Args:
        state: Before the step.
        loss: Mean over this device's examples.
        correct: How many of them were classified rightly.
        examples: How many they are.

    Returns:
        The new `TrainState.sums`.
    """
    batch = parallel.total(
        {"loss": loss * examples, "correct": correct, "examples": jnp.float32(examples)}
    )
    sums = {name: state.sums[name] + value for name, value in batch.items()}
    first_bad = (state.sums["bad_step"] < 0) & ~jnp.isfinite(batch["loss"])
    return {**sums, "bad_step": jnp.where(first_bad, state.step, state.sums["bad_step"])}
