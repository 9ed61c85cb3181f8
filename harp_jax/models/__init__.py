"""Networks, by name: `create(name, num_classes, granularity=None)`.

Linen modules from images to logits. A new network is a file and a row in `MODELS`, or a function of
your own, named as "module:function" in `config.model`. `losses` and the rooms above it may import
this one.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from harp_jax.models.blocks import MOST_WIDTH, Network
from harp_jax.models.bottleneck import resnet50
from harp_jax.models.convnet import cnn, tiny
from harp_jax.models.preact import preact_resnet18, preact_resnet18_v2
from harp_jax.models.prunable import Prunable
from harp_jax.models.resnet import resnet18
from harp_jax.models.vgg import vgg16_bn
from harp_jax.models.wrn import wrn_28_4, wrn_28_10, wrn_34_10
from harp_jax.names import find
from harp_jax.pruning.layers import bake
from harp_jax.pruning.scores import GRANULARITIES, Granularity
from harp_jax.settings import is_number
from harp_jax.types import Images, Logits, LogitsFn, Model, Normalization, Variables

MODELS: dict[str, Callable[..., Network]] = {
    "cnn": cnn,
    "tiny": tiny,
    "vgg16_bn": vgg16_bn,
    "resnet18": resnet18,
    "preact_resnet18": preact_resnet18,
    "preact_resnet18_v2": preact_resnet18_v2,
    "wrn_28_4": wrn_28_4,
    "wrn_28_10": wrn_28_10,
    "wrn_34_10": wrn_34_10,
    "resnet50": resnet50,
}
COMPUTE_DTYPES = ("float32", "bfloat16")


def create(
    name: str,
    num_classes: int,
    granularity: Granularity | None = None,
    *,
    axis_name: str | None = None,
    normalization: Sequence[Sequence[float]] | None = None,
    dtype: str = "float32",
    width: float = 1.0,
) -> nn.Module:
    """Builds a network.

    Args:
        name: One of `MODELS`, or "module:function" of your own. It is called with
            `num_classes` and with those of the arguments after `granularity` that it takes.
        num_classes: Number of logits, >= 2.
        granularity: 'weight' or 'channel' makes `init` add scores and rates of that granularity,
            for each layer its own; None makes it a dense network. Scores that layers share come
            from `harp_jax.pruning.channels`. Networks of `MODELS`, and any with a granularity,
            apply the masks of pruned variables and take dense variables as they are.
        axis_name: Mapped axis over which BatchNorm synchronises its training statistics.
        normalization: (mean, deviation) of every channel of the images: the network subtracts and
            divides before its first layer, so that attacks still see pixels in [0, 1]. None
            leaves the images as they are.
        dtype: Type of the features, one of `COMPUTE_DTYPES`. Variables, images and logits, and so
            all their gradients, are float32 always.
        width: Multiplies the channels and hidden units of all layers but the last, in (0, 100]; see
            `blocks.Network.scaled` for how they are rounded. A function of your own gets it if it
            is not 1, and has to take it then.

    Returns:
        A linen module: `model.apply(variables, images, train=False)` gives logits
        `[batch, num_classes]` for NHWC images in [0, 1].

    Raises:
        ValueError: For an unknown name, granularity or type, fewer than two classes, a width out of
            range or that the network does not take, or means and deviations that are not one each
            per channel or not usable.
    """
    build = find(MODELS, name, "model")
    if granularity is not None and granularity not in GRANULARITIES:
        raise ValueError(
            f"granularity={granularity!r}: allowed are None, {', '.join(GRANULARITIES)}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: at least 2 are needed")
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"dtype={dtype!r}: allowed are {', '.join(COMPUTE_DTYPES)}")
    if not is_number(width) or not 0 < width <= MOST_WIDTH:
        raise ValueError(f"width={width!r}: allowed are numbers in (0, {MOST_WIDTH:g}]")
    settings = {
        "axis_name": axis_name,
        "normalization": None if normalization is None else _checked(normalization),
        "dtype": jnp.dtype(dtype),
    }
    if name in MODELS:
        network = build(num_classes=num_classes, **settings)
        network = network if width == 1 else network.scaled(width)
    else:
        settings |= {} if width == 1 else {"width": width}
        network = _own(build, num_classes, settings, name)
    return network if granularity is None else Prunable(network, granularity)


def _own(build: Any, num_classes: int, settings: dict[str, Any], name: str) -> nn.Module:
    """Builds a network of the user's; whatever goes wrong becomes one line."""
    wanted = "allowed are functions of `num_classes` that return a linen module"
    if not callable(build):
        raise ValueError(f"model={name!r}: is {build!r}; {wanted}")
    taken = _taken(build, settings, name)
    try:
        network = build(num_classes=num_classes, **taken)
    except Exception as error:  # a user's function may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"model={name!r}: cannot be built ({reason}); {wanted}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model={name!r}: gives {network!r}; {wanted}")
    return network


def _taken(build: Callable[..., Any], settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the settings that a user's function takes; refuses those that it should take."""
    parameters = inspect.signature(build).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return settings
    for setting, default in (("normalization", None), ("dtype", jnp.float32), ("width", 1)):
        value = settings.get(setting, default)
        if setting not in parameters and value != default:
            raise ValueError(
                f"model={name!r}: takes no {setting!r}, which is {value}; allowed are functions"
                " that do"
            )
    return {setting: value for setting, value in settings.items() if setting in parameters}


def _checked(normalization: Sequence[Sequence[float]]) -> Normalization:
    """Returns checked means and deviations as tuples, which a module's attribute has to be."""
    mean, deviation = (tuple(map(float, numbers)) for numbers in normalization)
    if len(mean) != len(deviation) or not all(map(math.isfinite, mean + deviation)):
        raise ValueError(
            f"normalization={(mean, deviation)}: allowed are as many finite means as deviations"
        )
    if min(deviation, default=0.0) <= 0:
        raise ValueError(f"normalization={(mean, deviation)}: allowed are deviations > 0")
    return mean, deviation


def logits_fn(model: Model, variables: Variables) -> LogitsFn:
    """Returns the network in inference mode as a function of the images, as attacks take it.

    Args:
        model: A network made by `create`, or what stands for one.
        variables: Variables of the network, pruned or plain.

    Returns:
        A function from images in [0, 1] to logits; no images have no logits, [0, classes].
    """
    plain = bake(variables)

    def logits(images: Images) -> Logits:
        if images.shape[0] == 0:  # networks divide by the number of images to flatten them
            one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
            return jnp.zeros((0, *jax.eval_shape(logits, one).shape[1:]))
        output: Any = model.apply(plain, images, train=False)
        return output

    return logits


__all__ = ["COMPUTE_DTYPES", "MODELS", "create", "logits_fn"]
