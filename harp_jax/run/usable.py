"""Checks that a run can use a network, by traces that compute nothing."""

import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from harp_jax import parallel
from harp_jax.config.sections import Config, ConfigError
from harp_jax.data import Dataset
from harp_jax.pruning.layers import leaves_by_path

_LOGGER = logging.getLogger(__name__)
_LONGEST = 300  # characters of an error of the network's


def check(config: Config, model: nn.Module, dataset: Dataset, devices: int) -> None:
    """Checks a network's names and logits, and that training can call it; warns of empty crops.

    Args:
        config: The configuration of the run.
        model: The network, made for several devices.
        dataset: The data.
        devices: Number of devices of all processes.

    Raises:
        ConfigError: If the network has names that files cannot hold, fails, does not give a logit
            for each class, uses random numbers or has BatchNorm that would not synchronise over the
            devices.
    """
    image = jnp.zeros((1, *dataset.image_shape))
    side, padding = min(dataset.image_shape[:2]), config.data.crop_padding
    if padding >= side:
        _LOGGER.warning(
            "data.crop_padding=%d: some crops hold nothing of images with a side of %d pixels",
            padding,
            side,
        )
    _check_logits(config, model, image, dataset.num_classes)
    alone = _check_training(config, model, image)
    if alone and devices > 1:
        raise ConfigError(
            f"model={config.model!r}: BatchNorm {alone[0]!r} has axis_name=None, on {devices}"
            " devices; allowed are networks that take axis_name and hand it on, or devices=1"
        )


def _check_logits(config: Config, model: nn.Module, image: jax.Array, classes: int) -> None:
    for count, words in ((1, "an image"), (2, "two images")):
        images = jnp.repeat(image, count, axis=0)

        def logits(key: jax.Array, images: jax.Array = images) -> Any:
            variables = model.init(key, image)
            return model.apply(variables, images, train=False), variables

        try:
            found, variables = jax.eval_shape(logits, jax.random.key(0))
        except Exception as error:  # a user's network may raise anything
            raise ConfigError(
                f"model={config.model!r}: fails for {words} ({_reason(error)}); allowed are"
                " networks that are called with (images, train=False)"
            ) from error
        _check_names(config, variables)
        shapes = [each.shape for each in jax.tree.leaves(found)]
        if shapes != [(count, classes)]:
            raise ConfigError(
                f"model={config.model!r}: gives {shapes} for {words}; allowed is"
                f" {[(count, classes)]}, a logit for each class"
            )
        (kind,) = (each.dtype for each in jax.tree.leaves(found))
        if not jnp.issubdtype(kind, jnp.floating):
            raise ConfigError(
                f"model={config.model!r}: gives logits of {kind}; allowed are real numbers"
            )


def _check_names(config: Config, variables: Any) -> None:
    """Refuses names that files join to others, and arrays that are wrapped in something."""
    for path, leaf in leaves_by_path(variables).items():
        joining = [name for name in path if "." in name or "/" in name]
        if joining:
            raise ConfigError(
                f"model={config.model!r}: has the name {joining[0]!r} of a layer or array; allowed"
                " are names without '.' and '/'"
            )
        trained = path[0] in ("params", "batch_stats")
        if trained and (not hasattr(leaf, "shape") or leaf.dtype != jnp.float32):
            kind = getattr(leaf, "dtype", type(leaf).__name__)
            raise ConfigError(
                f"model={config.model!r}: {'/'.join(path)} is of {kind}; allowed are arrays of"
                " float32"
            )


def _check_training(config: Config, model: nn.Module, image: jax.Array) -> list[str]:
    """Returns the names of BatchNorms whose statistics are of one device alone."""
    alone = []

    def look(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            running = options.get("use_running_average", module.use_running_average)
            if not running and module.axis_name is None:
                alone.append("/".join(module.path))
        return call(*arguments, **options)

    def trained(images: jax.Array) -> Any:
        variables = model.init(jax.random.key(0), images)
        with nn.intercept_methods(look):
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

    try:
        jax.eval_shape(jax.vmap(trained, axis_name=parallel.AXIS), image[None])
    except Exception as error:  # a user's network may raise anything
        raise ConfigError(
            f"model={config.model!r}: fails with train=True ({_reason(error)}); allowed are"
            " networks without random numbers that change nothing but 'batch_stats'"
        ) from error
    return alone


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
