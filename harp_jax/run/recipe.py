"""How a stage trains, from the configuration: learning rate, optimiser, first state, step."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import optax

from harp_jax import methods
from harp_jax.config.sections import Config, loss_name, objective, validation_attack
from harp_jax.data import augment
from harp_jax.losses.objectives import FREE
from harp_jax.pruning.schemes import Scheme
from harp_jax.training import optim
from harp_jax.training import state as train_state
from harp_jax.training.free_step import make_free_step
from harp_jax.training.step import make_train_step
from harp_jax.types import Variables


def mode(config: Config, stage: str) -> str:
    """What a stage trains, a key of `stages.TRAINS`."""
    return config.prune.method if stage == "prune" else stage


def learning_rate(config: Config, stage: str, per_epoch: int) -> optax.Schedule:
    """The learning rate of a stage from a count, of which an epoch has `per_epoch`."""
    name, settings = config.optimizer.schedule, config[stage]
    return optim.learning_rate(name, settings.learning_rate, settings.epochs, per_epoch)


def context(config: Config, stage: str, scheme: Scheme, steps_per_epoch: int) -> methods.Context:
    """What the pruning methods may ask for in a stage, which counts the optimiser's updates."""
    replays = config.free.replays if loss_name(config, stage) == FREE else 1
    return methods.Context(config, scheme, replays * steps_per_epoch)


def optimizer(
    config: Config, stage: str, scheme: Scheme, steps_per_epoch: int, variables: Variables
) -> optax.GradientTransformation:
    """The optimiser of a stage.

    Args:
        config: A valid configuration.
        stage: 'pretrain', 'prune' or 'finetune'.
        scheme: How the network is pruned.
        steps_per_epoch: Batches in an epoch.
        variables: Those that the stage starts from.

    Returns:
        A transformation over what the stage trains.
    """
    counting = context(config, stage, scheme, steps_per_epoch)
    schedule = learning_rate(config, stage, counting.steps_per_epoch)
    return methods.optimizer(counting, mode(config, stage), schedule, variables)


def first_state(
    config: Config,
    stage: str,
    variables: Variables,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
) -> train_state.TrainState:
    """The state before a stage's first step, on the host.

    Args:
        config: A valid configuration.
        stage: 'pretrain', 'prune' or 'finetune'.
        variables: What it starts from.
        optimizer: See `optimizer`.
        image_shape: Height, width and channels.

    Returns:
        The state.
    """
    perturbed = (config.batch_size, *image_shape) if loss_name(config, stage) == FREE else None
    return train_state.create(variables, mode(config, stage), optimizer, config.seed, perturbed)


def train_step(
    config: Config,
    stage: str,
    model: nn.Module,
    scheme: Scheme,
    optimizer: optax.GradientTransformation,
    steps_per_epoch: int,
) -> Callable[..., train_state.TrainState]:
    """The training step of a stage, to be mapped over the devices.

    Args:
        config: A valid configuration.
        stage: 'pretrain', 'prune' or 'finetune'.
        model: Network whose BatchNorm synchronises over the devices.
        scheme: How it is pruned.
        optimizer: See `optimizer`.
        steps_per_epoch: Batches in an epoch.

    Returns:
        (state, batch) -> state.
    """
    attack = validation_attack(config)

    def augment_batch(images: Any, keys: Any) -> Any:
        padding, flip = config.data.crop_padding, config.data.flip
        return augment(images, keys, crop_padding=padding, flip=flip)

    trained, counting = mode(config, stage), context(config, stage, scheme, steps_per_epoch)
    masking = methods.masking(counting, trained)
    shared = (optimizer, trained, augment_batch, steps_per_epoch, masking)
    if loss_name(config, stage) == FREE:
        return make_free_step(model, attack.epsilon, config.free.replays, *shared)
    found = objective(config, stage)
    inner = None if found.inner is None else found.inner(attack)
    ascend = methods.score_ascent(counting, trained)
    return make_train_step(model, found, inner, *shared, ascend)
