"""The layers that all networks are made of.

BatchNorm is Flax': momentum 0.9 and epsilon 1e-5 as the authors have it, but the running variance
follows the biased variance of a batch where PyTorch's follows the unbiased one, n / (n - 1) times
as large. With the n = batch * height * width of real training that is a difference below 1e-3.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from flax.linen import initializers

from harp_jax import ops
from harp_jax.pruning.layers import PrunableConv, PrunableDense
from harp_jax.pruning.scores import Granularity

Layer = Callable[..., nn.Module]

he_normal_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for kernels and dense layers: uniform within 1 / sqrt(fan_in).
uniform_fan_in = initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def conv_layer(granularity: Granularity | None) -> Layer:
    """3x3 convolutions of stride 1 and padding 1 without bias; every default can be overridden."""
    return functools.partial(
        PrunableConv,
        kernel_size=(3, 3),
        padding=((1, 1), (1, 1)),
        use_bias=False,
        conv_general_dilated=ops.conv_general_dilated,
        kernel_init=he_normal_fan_out,
        granularity=granularity,
    )


def dense_layer(granularity: Granularity | None) -> Layer:
    """Dense layers with bias."""
    return functools.partial(PrunableDense, kernel_init=uniform_fan_in, granularity=granularity)


def norm_layer(axis_name: str | None, *, train: bool) -> Layer:
    """BatchNorm: batch statistics over `axis_name` too if `train`, else the running ones."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        axis_name=axis_name if train else None,
    )


def max_pool(x: jax.Array) -> jax.Array:
    """2x2 max-pooling of stride 2."""
    return ops.max_pool(x, (2, 2), (2, 2))
