"""What the sections of a configuration describe: attacks, losses, the network's normalisation."""

import dataclasses
from typing import Any, TypeAlias

from harp_jax.attacks import ATTACKS, PGD, Attack
from harp_jax.losses.objectives import OBJECTIVES, Objective
from harp_jax.types import Normalization

# A ConfigDict; its fields are made at run time, where `config.validate` checks them.
Config: TypeAlias = Any


class ConfigError(ValueError):
    """A setting that cannot work; the message names the field, its value and what is allowed."""


def attacks_to_run(config: Config) -> dict[str, Attack]:
    """The attacks of the evaluation, by name.

    Raises:
        ConfigError: for a name that `evaluate.attacks` does not have, or settings that are wrong.
    """
    known = config.evaluate.attacks
    for name in config.evaluate.run:
        require(name in known, "evaluate.run", name, ", ".join(known))
    return {
        name: make_attack(known[name], f"evaluate.attacks.{name}") for name in config.evaluate.run
    }


def make_attack(settings: Config, field: str) -> Attack:
    """The attack that a config section describes.

    Args:
        settings: 'type' (a key of `ATTACKS`) and that attack's fields.
        field: Name of the section, for errors.

    Returns:
        The attack.

    Raises:
        ConfigError: for an unknown type, an unknown field or a value out of range.
    """
    fields = dict(settings)
    kind = fields.pop("type", None)
    require(kind in ATTACKS, f"{field}.type", kind, ", ".join(ATTACKS))
    known = {each.name: each.type for each in dataclasses.fields(ATTACKS[kind])}
    for name, value in fields.items():
        require(name in known, f"{field}.{name}", value, f"the fields {', '.join(known)}")
        require(isinstance(value, int | float | str), f"{field}.{name}", value, "plain values")
        is_text = known[name] is str
        allowed = "names, as text" if is_text else "numbers"
        require(isinstance(value, str) == is_text, f"{field}.{name}", value, allowed)
        whole = known[name] is not int or type(value) is int
        require(whole, f"{field}.{name}", value, "whole numbers")
    missing = [
        each.name
        for each in dataclasses.fields(ATTACKS[kind])
        if each.default is dataclasses.MISSING and each.name not in fields
    ]
    require(not missing, field, fields, f"settings with {' and '.join(map(repr, missing))}")
    try:
        return ATTACKS[kind](**fields)
    except ValueError as error:
        raise ConfigError(f"{field}.{error}") from None


def validation_attack(config: Config) -> PGD:
    """The attack of validation, from which each loss makes its own for training."""
    attack: Any = make_attack({"type": "PGD", **config.attack}, "attack")
    return attack


def loss_name(config: Config, stage: str) -> str:
    """The name of a stage's training loss."""
    return config[stage].loss or config.loss


def objective(config: Config, stage: str) -> Objective:
    """The training loss of a stage, with its weight; for any but 'free'."""
    name = loss_name(config, stage)
    found = OBJECTIVES[name]
    if found.beta is None:
        return found
    return dataclasses.replace(found, beta=config[name].beta)


def normalization(config: Config, channels: int) -> Normalization | None:
    """What the network subtracts from images and divides them by, or None.

    Args:
        config: A valid configuration.
        channels: Of the images.

    Returns:
        (means, deviations), a number a channel.

    Raises:
        ConfigError: for another number of channels.
    """
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    if not mean:
        return None
    require(len(mean) == channels, "data.mean", mean, f"{channels} numbers, or () for none")
    return mean, std


def minimum_rate(config: Config) -> float:
    """Smallest compression rate that a layer can reach, a_min = alpha * target."""
    return config.prune.alpha * config.prune.target


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises a ConfigError that names the field, its value and what is allowed."""
    if not condition:
        raise ConfigError(f"{field}={value!r}: allowed are {allowed}")
