"""Builds stages, and how they train, from the configuration."""

import dataclasses
from collections.abc import Callable
from typing import Any

from harp_jax.attacks.groups import InGroups
from harp_jax.config.sections import Config, loss, method, minimum_rate, validation_attack
from harp_jax.data import augment
from harp_jax.losses import Free
from harp_jax.methods import Links, Setting, Timing, regrowing
from harp_jax.pruning.schemes import Scheme
from harp_jax.training import optim
from harp_jax.training.average import averaging
from harp_jax.training.free_step import make_free_step
from harp_jax.training.stages import STREAMS, WEIGHTS, Stage
from harp_jax.training.state import TrainState
from harp_jax.training.step import make_train_step
from harp_jax.types import Model, Variables


def setting(config: Config, scheme: Scheme, batches_per_epoch: int) -> Setting:
    """Builds the setting of the pruning method.

    Args:
        config: A valid configuration.
        scheme: The scheme of the network.
        batches_per_epoch: Batches in an epoch.

    Returns:
        The setting of the prune stage.
    """
    updates_per_batch = loss(config, "prune").updates_per_batch
    return Setting(
        scheme=scheme,
        target=scheme.cost.target_share(config.prune.target),
        minimum=minimum_rate(config),
        updates_per_epoch=updates_per_batch * batches_per_epoch,
        epochs=config.prune.epochs,
        seed=config.seed,
        updates_per_batch=updates_per_batch,
    )


def make_stage(
    config: Config, name: Any, scheme: Scheme, batches_per_epoch: int, variables: Variables
) -> Stage:
    """Builds a stage.

    Args:
        config: A valid configuration.
        name: 'pretrain', 'prune' or 'finetune'.
        scheme: The scheme of the network.
        batches_per_epoch: Batches in an epoch.
        variables: The variables that the stage starts from.

    Returns:
        The stage.
    """
    training_loss = loss(config, name)
    settings, sgd = config[name], config.optimizer
    updates_per_epoch = training_loss.updates_per_batch * batches_per_epoch
    links: Links = {}
    own: dict[str, Any] = {"stream": STREAMS.get(name), "trains": WEIGHTS}
    if name == "prune":
        links, own = _of_method(config, setting(config, scheme, batches_per_epoch), variables)
    elif name == "finetune" and settings.regrow:
        timing = Timing(settings.epochs, updates_per_epoch, training_loss.updates_per_batch)
        own["masking"] = regrowing(timing, lambda updates: settings.regrow)
    schedule = optim.learning_rate(
        sgd.schedule, settings.learning_rate, settings.epochs, updates_per_epoch
    )
    return Stage(
        name=name,
        loss=training_loss,
        attack=training_loss.attack(validation_attack(config)),
        optimizer=optim.optimizer(schedule, sgd.momentum, sgd.weight_decay, **links),
        learning_rate=schedule,
        batches_per_epoch=batches_per_epoch,
        augment=_augmentation(config),
        average=settings.get("average", 0.0),
        epochs=settings.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        **own,
    )


def _of_method(config: Config, told: Setting, variables: Variables) -> tuple[Links, dict[str, Any]]:
    """Returns what the method gives to the prune stage: its optimiser's links, its fields."""
    chosen = method(config)
    links = chosen.links(told, variables)
    if chosen.learns_masks:
        links = {**links, "tie": told.scheme.tie, "clip_norm": config.prune.clip_norm or None}
    return links, {
        "stream": chosen.stream,
        "trains": chosen.trains,
        "masking": chosen.masking(told, variables),
        "ascend": chosen.ascend(told),
        "after_epoch": chosen.after_epoch(told, variables),
        "chosen_from": chosen.chosen_from(told),
    }


def _augmentation(config: Config) -> Callable[..., Any]:
    padding, flip = config.data.crop_padding, config.data.flip

    def augment_batch(images: Any, keys: Any) -> Any:
        return augment(images, keys, crop_padding=padding, flip=flip)

    return augment_batch


def make_step(stage: Stage, model: Model, group: int | None = None) -> Callable[..., TrainState]:
    """Builds the training step of a stage, (state, batch) -> state, to be mapped over devices.

    Args:
        stage: The stage.
        model: The network.
        group: Largest number of images that a device attacks at once; None means all.
    """
    if stage.attack is not None and group is not None:
        stage = dataclasses.replace(stage, attack=InGroups(stage.attack, group))
    make = make_free_step if isinstance(stage.loss, Free) else make_train_step
    step = make(stage, model)
    return averaging(step, stage.average) if stage.average else step
