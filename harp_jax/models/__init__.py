"""Networks, by name: `create(name, num_classes, granularity=None)`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from harp_jax.models.convnet import cnn, tiny
from harp_jax.models.resnet import resnet18
from harp_jax.models.vgg import vgg16_bn
from harp_jax.models.wrn import wrn_28_4
from harp_jax.pruning.scores import GRANULARITIES, Granularity
from harp_jax.types import Images, Logits, LogitsFn, Variables

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "tiny": tiny,
    "vgg16_bn": vgg16_bn,
    "resnet18": resnet18,
    "wrn_28_4": wrn_28_4,
}


def create(
    name: str,
    num_classes: int,
    granularity: Granularity | None = None,
    *,
    axis_name: str | None = None,
) -> nn.Module:
    """Builds a network.

    Args:
        name: One of `MODELS`.
        num_classes: Number of logits, >= 2.
        granularity: 'weight' or 'channel' makes `init` add scores and rates of that granularity;
            None makes it a dense network. Either one runs pruned or dense variables, since the
            variables alone decide (see `harp_jax.pruning.layers`). These scores are each layer's
            own; `harp_jax.pruning.channels` makes those that layers share.
        axis_name: Mapped axis over which BatchNorm synchronises its training statistics.

    Returns:
        A linen module: `model.apply(variables, images, train=False)` gives logits
        `[batch, num_classes]` for NHWC images in [0, 1].

    Raises:
        ValueError: for an unknown name or granularity, or fewer than two classes.
    """
    if name not in MODELS:
        raise ValueError(f"model={name!r}: allowed are {', '.join(MODELS)}")
    if granularity is not None and granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity={granularity!r}: allowed are None, {', '.join(GRANULARITIES)}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: at least 2 are needed")
    return MODELS[name](num_classes=num_classes, granularity=granularity, axis_name=axis_name)


def logits_fn(model: nn.Module, variables: Variables) -> LogitsFn:
    """The network in inference mode as a function of the images alone, as attacks take it.

    Args:
        model: A network made by `create`.
        variables: Its variables, pruned or plain.

    Returns:
        Images in [0, 1] -> logits.
    """

    def logits(images: Images) -> Logits:
        output: Any = model.apply(variables, images, train=False)
        return output

    return logits


__all__ = ["MODELS", "create", "logits_fn"]
