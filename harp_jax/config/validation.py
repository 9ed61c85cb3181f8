"""Checks a configuration before anything compiles: the fields by `rules`, then what they build."""

from typing import Any

from ml_collections import ConfigDict

from harp_jax.config.defaults import RECIPES, default
from harp_jax.config.kinds import Several
from harp_jax.config.recipes import with_recipe
from harp_jax.config.rules import OPEN, RELATIONS, RULES, SETTINGS
from harp_jax.config.sections import (
    Config,
    ConfigError,
    attacks_to_run,
    check_sections,
    loss,
    loss_name,
    make_attack,
    method,
    require,
    validation_attack,
)
from harp_jax.losses import Free
from harp_jax.methods import Method, Sharpness
from harp_jax.methods.wrapped import Wrapped
from harp_jax.models import MODELS
from harp_jax.names import find, hint
from harp_jax.settings import plain
from harp_jax.training.stages import STAGES

_BEGINNING = "a file begins with harp_jax.config.default()"


def validate(config: Config) -> None:
    """Checks every field that can be checked without loading data.

    Args:
        config: The configuration of a run. NumPy's scalars count as Python's.

    Raises:
        ConfigError: For the first wrong field; names it, its value and what is allowed.
    """
    check_fields(config)
    config = plain_numbers(config)
    _validate_recipe(config)
    config = with_recipe(config)
    try:
        find(MODELS, config.model, "model")
    except ValueError as error:
        raise ConfigError(str(error)) from error.__cause__
    check_sections(config)
    _validate_method(config)
    _validate_losses(config)
    validation_attack(config)
    for name, settings in config.evaluate.attacks.items():
        make_attack(settings, f"evaluate.attacks.{name}")
    attacks_to_run(config)


def check_fields(config: Config) -> None:
    """Checks names, types and ranges of all fields, and the relations between them.

    It imports no module of the user's and does not start JAX.

    Args:
        config: The configuration of a run.

    Raises:
        ConfigError: For the first wrong field; names it, its value and what is allowed.
    """
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"config={config!r}: allowed are configurations; {_BEGINNING}")
    _check_names(config, default(), "")
    for field, rule in (RULES | SETTINGS).items():
        value = plain(_get(config, field))
        if rule.accepts(value) or (value is None and rule.optional):
            continue
        wrong = rule.wrong(value) if isinstance(rule, Several) else value
        unset = ", or unset" if rule.optional else ""
        raise ConfigError(f"{field}={_shown(wrong)}: {rule.allowed(value)}{unset}")
    config = with_recipe(plain_numbers(config))
    for relation in RELATIONS:
        allowed = relation.allowed.format(config=config)
        require(relation.holds(config), relation.field, _get(config, relation.field), allowed)


def plain_numbers(config: Config) -> Config:
    """Returns a copy of a configuration with Python's scalars in place of NumPy's."""
    copy = config.copy_and_resolve_references()
    with copy.ignore_type(), copy.unlocked():
        _make_plain(copy)
    return copy


def check_batches(config: Config, devices: int) -> None:
    """Checks that batches divide evenly over the devices.

    Args:
        config: A valid configuration.
        devices: Number of devices of all processes.

    Raises:
        ConfigError: For a batch size that is not a multiple of the number of devices.
    """
    for field in ("batch_size", "evaluate.batch_size"):
        value = _get(config, field)
        require(value % devices == 0, field, value, f"multiples of the {devices} devices")


def _check_names(config: Config, known: Config, above: str) -> None:
    """Checks that a section has the fields and sections of the defaults, and no others."""
    for name in config:
        if name not in known:
            near = hint(name, known).replace("did you mean '", f"did you mean '{above}")
            fields = ", ".join(above + each for each in known)
            value = _shown(config.to_dict()[name])
            raise ConfigError(f"{above}{name}={value}: is no field; {near}allowed are {fields}")
    for name, value in known.items():
        field = above + name
        if name not in config:
            raise ConfigError(f"{field}: is missing; {_BEGINNING}")
        if isinstance(value, ConfigDict):
            inner = config[name]
            allowed = "sections, {field: value}"
            require(isinstance(inner, ConfigDict), field, inner, allowed)
            if field not in OPEN:
                _check_names(inner, value, f"{field}.")


def _shown(value: Any) -> str:
    """Returns a value for a message, in one line that is not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _make_plain(section: Any) -> None:
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            _make_plain(value)
        else:
            section[name] = plain(value)


def _validate_losses(config: Config) -> None:
    epsilon = config.attack.epsilon
    for stage in STAGES:
        enough = not loss(config, stage).needs_radius or epsilon > 0
        allowed = f"numbers > 0 with the loss {loss_name(config, stage)!r}"
        require(enough, "attack.epsilon", epsilon, allowed)
        several = loss(config, stage).updates_per_batch
        allowed = "losses with updates_per_batch=1, or that extend harp_jax.losses.Free"
        known = several == 1 or isinstance(loss(config, stage), Free)
        require(known, f"{stage}.loss", loss_name(config, stage), allowed)


def _validate_recipe(config: Config) -> None:
    name = config.prune.recipe
    if not RECIPES[name]:
        return
    chosen = method(config)
    trained = "weights" in chosen.trains and not config.prune.joint
    reason = (
        "whose weights train" if trained and chosen.learns_masks else "whose masks do not learn"
    )
    allowed = f"'paper' with the method {config.prune.method!r}, {reason}"
    require(chosen.learns_masks and not trained, "prune.recipe", name, allowed)


def _validate_method(config: Config) -> None:
    prune = config.prune
    chosen = method(config)
    if isinstance(loss(config, "prune"), Free):
        inside = chosen
        while isinstance(inside, Wrapped) and not isinstance(inside, Sharpness):
            inside = inside.method
        ascends = type(inside).ascend is not Method.ascend
        what = "prune.sharpness > 0" if prune.sharpness else f"the method {prune.method!r}"
        allowed = f"other losses with {what}: Free-AT takes its gradients at the scores themselves"
        require(not ascends, "prune.loss", loss_name(config, "prune"), allowed)
    allowed = f"{', '.join(chosen.granularities)} with the method {prune.method!r}"
    known = prune.granularity in chosen.granularities
    require(known, "prune.granularity", prune.granularity, allowed)
    unstable = chosen.unstable(prune.epochs, prune.learning_rate)
    require(unstable is None, prune.method, dict(config.get(prune.method, {})), unstable or "")


def _get(config: Config, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value[part]
    return value
