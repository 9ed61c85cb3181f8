"""Builds what a configuration describes: attacks, losses, method, data, normalisation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from harp_jax import data as data_sets
from harp_jax import names
from harp_jax.attacks import ATTACKS, PGD, Attack
from harp_jax.attacks.base import norm_of
from harp_jax.attacks.norms import NORMS
from harp_jax.config import rules
from harp_jax.config.defaults import SHARED_BY_METHODS, Config
from harp_jax.data import Dataset
from harp_jax.losses import LOSSES, Loss
from harp_jax.methods import METHODS, Anneal, Joint, Live, Method, Sharpness, Window
from harp_jax.names import printable
from harp_jax.settings import build, defaults, is_frozen_dataclass
from harp_jax.training.stages import STAGES
from harp_jax.types import Normalization


class ConfigError(ValueError):
    """Raised for a setting that cannot work; names the field, its value and what is allowed."""

    def __init__(self, message: str):
        super().__init__(printable(message))


def attacks_to_run(config: Config) -> dict[str, Attack]:
    """Builds the attacks of the evaluation, by name.

    Raises:
        ConfigError: For a name that is not in `evaluate.attacks`, or wrong settings.
    """
    known = config.evaluate.attacks
    for name in config.evaluate.run:
        require(name != "natural", "evaluate.run", name, "other names, it stands for no attack")
        if name not in known:
            raise ConfigError(f"evaluate.run={name!r}: {names.one_of(name, known)}")
    return {
        name: make_attack(known[name], f"evaluate.attacks.{name}") for name in config.evaluate.run
    }


def make_attack(settings: Config, field: str) -> Attack:
    """Builds the attack that a config section describes.

    Args:
        settings: 'type' (a key of `ATTACKS`, or 'module:Class') and that attack's fields.
        field: Name of the section, for errors.

    Returns:
        The attack.

    Raises:
        ConfigError: For an unknown type, an unknown field or a value out of range.
    """
    values = _plain_section(settings, field)
    kind = _find(ATTACKS, values.pop("type", None), f"{field}.type")
    attack = _build(kind, values, field)
    allowed = "frozen dataclasses with __call__(logits_fn, images, labels, key)"
    require(callable(attack), f"{field}.type", settings["type"], allowed)
    allowed = f"attacks with an epsilon, in the norm {' or '.join(NORMS)}"
    known = isinstance(attack, Attack) and norm_of(attack) in NORMS
    require(known, f"{field}.type", settings["type"], allowed)
    wrong = rules.wrong_length(attack)
    if wrong is not None:
        name, value, allowed = wrong
        raise ConfigError(f"{field}.{name}={value!r}: {allowed}")
    return attack


def _find(table: Mapping[str, Any], name: Any, field: str, base: type | None = None) -> Any:
    """Looks up a class: a frozen dataclass, which extends the base class if there is one."""
    try:
        found = names.find(table, name, field)
    except ValueError as error:
        raise ConfigError(str(error)) from error.__cause__
    if not is_frozen_dataclass(found) or (base is not None and not issubclass(found, base)):
        what = (
            "frozen dataclasses"
            if base is None
            else f"frozen dataclasses that extend {base.__name__}"
        )
        raise ConfigError(f"{field}={name!r}: is {found!r}; allowed are {what}")
    return found


def _build(kind: Any, values: Mapping[str, Any], section: str) -> Any:
    try:
        return build(kind, values, section)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _own(config: Config, name: str) -> tuple[str, dict[str, Any]]:
    """Returns the name and the content of the section that only one loss or method has."""
    _, is_foreign, attribute = name.partition(":")
    if is_foreign:
        section = f"own.{attribute}"
        return section, _plain_section(config.own.get(attribute, {}), section)
    return name, dict(config.get(name, {}))


def _plain_section(value: Any, field: str) -> dict[str, Any]:
    try:
        return dict(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{field}={value!r}: allowed are sections, {{field: value}}") from None


def validation_attack(config: Config) -> PGD:
    """Builds the attack of validation, from which each loss makes its own for training."""
    attack: Any = make_attack({"type": "PGD", **config.attack}, "attack")
    return attack


def loss_name(config: Config, stage: str) -> str:
    """Returns the name of a stage's training loss."""
    return config[stage].loss or config.loss


def loss(config: Config, stage: str) -> Loss:
    """Builds the training loss of a stage, with its settings.

    Raises:
        ConfigError: For an unknown loss, an unknown field or a value out of range.
    """
    name = loss_name(config, stage)
    field = "loss" if config[stage].loss is None else f"{stage}.loss"
    kind = _find(LOSSES, name, field, Loss)
    section, values = _own(config, name)
    return _build(kind, values, section)


def method(config: Config) -> Method:
    """Builds the pruning method, wrapped as the options in `prune` say.

    Fields that methods share (`gamma0`) are in `config.prune`, the others in the section with the
    method's name.

    Raises:
        ConfigError: For an unknown method, an unknown field or a value out of range.
    """
    prune = config.prune
    kind = _find(METHODS, prune.method, "prune.method", Method)
    section, own = _own(config, prune.method)
    shared = {name: prune[name] for name in defaults(kind) if name in SHARED_BY_METHODS}
    return _wrapped(prune, _build(kind, own | shared, "prune" if shared else section))


def _wrapped(prune: Config, built: Method) -> Method:
    """Wraps a method as the options in the section `prune` say."""
    plain = type(built).masking is Method.masking
    if prune.live:
        allowed = f"False with the method {prune.method!r}, whose masks do not learn"
        require(built.learns_masks, "prune.live", prune.live, allowed)
        allowed = f"False with the method {prune.method!r}, which has a masking of its own"
        require(plain, "prune.live", prune.live, allowed)
        built = Live(built, prune.live_after)
    if prune.window:
        allowed = f"0 with the method {prune.method!r}, whose rates do not learn"
        require("rates" in built.trains, "prune.window", prune.window, allowed)
        allowed = f"0 with the method {prune.method!r}, which has a masking of its own"
        require(plain, "prune.window", prune.window, allowed)
        built = Window(built, prune.window)
    if prune.joint:
        trained = "weights" in built.trains
        reason = "whose weights train" if trained else "whose masks do not learn"
        allowed = f"False with the method {prune.method!r}, {reason}"
        require(built.learns_masks and not trained, "prune.joint", prune.joint, allowed)
        built = Joint(built)
    if prune.anneal:
        allowed = f"0 with the method {prune.method!r}, whose masks do not learn"
        require(built.learns_masks, "prune.anneal", prune.anneal, allowed)
        built = Anneal(built, prune.anneal)
    if prune.sharpness:
        allowed = f"0 with the method {prune.method!r}, whose scores do not learn"
        require("scores" in built.trains, "prune.sharpness", prune.sharpness, allowed)
        built = Sharpness(built, prune.sharpness)
    return built


def check_sections(config: Config) -> None:
    """Checks the sections of all losses and methods, also of those that this run does not use.

    In `own`, sections that nothing reads are misspelt, or of a loss that was left.

    Raises:
        ConfigError: For an unknown field, a value out of range or a section of `own` that is not
            read.
    """
    for name, kind in (LOSSES | METHODS).items():
        if name in config:
            _build(kind, dict(config[name]), name)
    chosen = (config.loss, *(loss_name(config, stage) for stage in STAGES), config.prune.method)
    read = sorted({name.partition(":")[2] for name in chosen if ":" in name})
    for name, settings in config.own.items():
        allowed = f"{', '.join(read) or 'none'}, which the losses and the method of this run read"
        value = settings.to_dict() if isinstance(settings, ConfigDict) else settings
        require(name in read, f"own.{name}", value, allowed)


def normalization(config: Config, channels: int) -> Normalization | None:
    """Returns the means and deviations that normalise images, or None.

    Args:
        config: A valid configuration.
        channels: Number of channels of the images.

    Returns:
        (means, deviations), one number a channel.

    Raises:
        ConfigError: For another number of channels.
    """
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    if not mean:
        return None
    require(len(mean) == channels, "data.mean", mean, f"{channels} numbers, or () for none")
    return mean, std


def minimum_rate(config: Config) -> float:
    """Computes the smallest compression rate of a layer, a_min = alpha * target."""
    return config.prune.alpha * config.prune.target


def load_data(config: Config) -> Dataset:
    """Loads the data of a run; networks are chosen on its validation split.

    Raises:
        DataError: If the set is unknown, missing or damaged, or has too few examples.
    """
    data = config.data
    dataset = data_sets.load(
        data.name,
        data_dir=data.directory,
        seed=config.seed,
        validation_examples=data.validation_examples,
        train_examples=data.train_examples,
        test_examples=data.test_examples,
        pad_to=data.pad_to,
        image_size=data.image_size,
        grey=data.grey,
        workers=data.workers,
    )
    return dataclasses.replace(dataset, validation=getattr(dataset, data.select_on))


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises a ConfigError that names the field, its value and what is allowed."""
    if not condition:
        raise ConfigError(f"{field}={value!r}: allowed are {allowed}")
