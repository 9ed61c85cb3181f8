"""Checks a configuration before anything compiles."""

from typing import Any

from harp_jax.config.defaults import (
    ABOVE_TARGET,
    ALL_STAGES,
    CHECKPOINT,
    JSON,
    SELECTION_SPLITS,
    SPARSE,
)
from harp_jax.config.sections import (
    Config,
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
from harp_jax.models import COMPUTE_DTYPES, MODELS
from harp_jax.names import find
from harp_jax.pruning.scores import GRANULARITIES
from harp_jax.pruning.strategies import STRATEGIES
from harp_jax.training.optim import SCHEDULES
from harp_jax.training.stages import STAGES


def validate(config: Config) -> None:
    """Checks every field that can be checked without loading data.

    Args:
        config: The configuration of a run.

    Raises:
        ConfigError: For the first wrong field; names it, its value and what is allowed.
    """
    choices = {
        "compute_dtype": COMPUTE_DTYPES,
        "sparse": SPARSE,
        "optimizer.schedule": SCHEDULES,
        "prune.granularity": GRANULARITIES,
        "prune.above_target": ABOVE_TARGET,
        "data.select_on": SELECTION_SPLITS,
    }
    find(MODELS, config.model, "model")
    for field, allowed in choices.items():
        value = _get(config, field)
        require(value in allowed, field, value, ", ".join(allowed))
    for field, allowed in (("stages", ALL_STAGES), ("evaluate.stages", STAGES)):
        stages = tuple(_get(config, field))
        require(len(stages) > 0, field, stages, ", ".join(allowed))
        for stage in stages:
            require(stage in allowed, field, stage, ", ".join(allowed))
    counts = [f"{stage}.epochs" for stage in STAGES]
    if config.data.select_on == "validation":
        counts.append("data.validation_examples")
    for field in (*counts, "batch_size", "evaluate.batch_size"):
        require(_get(config, field) >= 1, field, _get(config, field), "whole numbers >= 1")
    for stage in STAGES:
        field = f"{stage}.learning_rate"
        require(_get(config, field) > 0, field, _get(config, field), "numbers > 0")
    _validate_ranges(config)
    _validate_normalization(config)
    check_sections(config)
    _validate_prune(config)
    _validate_losses(config)
    validation_attack(config)
    for name, settings in config.evaluate.attacks.items():
        make_attack(settings, f"evaluate.attacks.{name}")
    attacks_to_run(config)


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


def _validate_ranges(config: Config) -> None:
    momentum = config.optimizer.momentum
    require(0 <= momentum < 1, "optimizer.momentum", momentum, "numbers in [0, 1)")
    not_negative = (
        "seed",
        "checkpoint_every_steps",
        "optimizer.weight_decay",
        "prune.clip_norm",
        "prune.sharpness",
        "data.crop_padding",
        "data.validation_examples",
        "data.workers",
    )
    require(config.seed < 2**32, "seed", config.seed, "whole numbers below 2**32")
    for field in not_negative:
        require(_get(config, field) >= 0, field, _get(config, field), "numbers >= 0")
    optional = ("train_examples", "test_examples", "pad_to", "image_size")
    for field in (*(f"data.{name}" for name in optional), "devices"):
        value = _get(config, field)
        require(value is None or value >= 1, field, value, "whole numbers >= 1, or unset")
    if config.data.image_size is not None:
        padding = config.data.crop_padding
        require(padding == 0, "data.crop_padding", padding, "0 with data.image_size, which crops")
        size = config.data.pad_to
        require(size is None, "data.pad_to", size, "unset with data.image_size, which crops")


def _validate_normalization(config: Config) -> None:
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    finite = [isinstance(x, int | float) and abs(x) < float("inf") for x in mean]
    require(all(finite), "data.mean", mean, "finite numbers, one a channel")
    require(len(std) == len(mean), "data.std", std, f"as many numbers as in data.mean={mean}")
    positive = [isinstance(x, int | float) and 0 < x < float("inf") for x in std]
    require(all(positive), "data.std", std, "numbers > 0")


def _validate_losses(config: Config) -> None:
    epsilon = config.attack.epsilon
    for stage in STAGES:
        enough = not loss(config, stage).needs_radius or epsilon > 0
        allowed = f"numbers > 0 with the loss {loss_name(config, stage)!r}"
        require(enough, "attack.epsilon", epsilon, allowed)


def _validate_prune(config: Config) -> None:
    prune = config.prune
    is_read = prune.strategy.startswith((JSON, CHECKPOINT))
    allowed = f"{', '.join(STRATEGIES)}, {JSON}PATH, {CHECKPOINT}PATH"
    require(is_read or prune.strategy in STRATEGIES, "prune.strategy", prune.strategy, allowed)
    require(0 < prune.target <= 1, "prune.target", prune.target, "numbers in (0, 1]")
    require(0 < prune.alpha < 1, "prune.alpha", prune.alpha, "numbers in (0, 1)")
    _validate_method(config)
    initial = prune.initial_rate
    require(0 < initial <= 1, "prune.initial_rate", initial, "numbers in (0, 1]")


def _validate_method(config: Config) -> None:
    prune = config.prune
    chosen = method(config)
    if prune.sharpness:
        is_free = isinstance(loss(config, "prune"), Free)
        name = loss_name(config, "prune")
        require(not is_free, "prune.loss", name, "other losses with prune.sharpness > 0")
    single = not prune.live or prune.granularity == "weight"
    require(single, "prune.granularity", prune.granularity, "weight with prune.live")
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
