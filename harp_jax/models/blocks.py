"""The layers that all networks are made of.

BatchNorm is Flax': momentum 0.9 and epsilon 1e-5 as the authors have it, but the running variance
follows the biased variance of a batch where PyTorch's follows the unbiased one, n / (n - 1) times
as large. With the n = batch * height * width of real training that is a difference below 1e-3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax.typing import DTypeLike

from harp_jax import ops
from harp_jax.pruning.layers import bake
from harp_jax.types import Images, Logits, Normalization, PRNGKey, Variables

MOST_WIDTH = 100.0  # allowed factor of the channels
Layer = Callable[..., nn.Module]

he_normal_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's default for kernels and dense layers: uniform within 1 / sqrt(fan_in).
uniform_fan_in = initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def uniform_bias(inputs: int) -> Callable[..., jax.Array]:
    """Returns PyTorch's initialiser of a dense layer's bias: uniform in +-1 / sqrt(inputs)."""
    bound = inputs**-0.5

    def init(key: PRNGKey, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Network(nn.Module, kw_only=True):
    """The base class of all networks: it normalises images and returns float32 logits.

    Parameters, BatchNorm's statistics and masks are always float32: a kernel is masked and then
    rounded to the compute type.

    Attributes:
        axis_name: See `harp_jax.models.create`.
        normalization: See `harp_jax.models.create`.
        dtype: See `harp_jax.models.create`.
    """

    axis_name: str | None = None
    normalization: Normalization | None = None
    dtype: DTypeLike = jnp.float32

    CHANNELS: ClassVar[tuple[str, ...]] = ()  # attributes that count channels or hidden units

    @nn.nowrap
    def scaled(self, width: float) -> "Network":
        """Returns the network with a multiple of the channels of its layers.

        Every number of channels or hidden units is multiplied and rounded to the nearest whole one,
        halves to the even one, at least 1. Residual networks have one such number, that of the
        first convolution; their stages stay whole multiples of it, so that each block has the
        shortcut that it has at width 1.

        Args:
            width: Factor, in (0, 100].

        Returns:
            A network of the same kind; its layers have the same names.
        """

        def rounded(count: Any) -> Any:
            if isinstance(count, str):  # a pooling in VGG's plan
                return count
            if isinstance(count, Sequence):
                return tuple(map(rounded, count))
            return max(1, round(count * width))

        return self.clone(**{name: rounded(getattr(self, name)) for name in self.CHANNELS})

    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Computes the logits of images in [0, 1]."""
        x = normalize(images, self.normalization)
        return self.classify(x.astype(self.dtype), train=train).astype(jnp.float32)

    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes logits from normalised images, both of the compute type; a subclass does it."""
        raise NotImplementedError

    @nn.nowrap
    def apply(self, variables: Variables, *args: Any, **kwargs: Any) -> Any:
        """Applies the masks to the kernels, then runs the network as `nn.Module.apply` does.

        Args:
            variables: Variables of the pruned or of the dense network.
            *args: See `nn.Module.apply`.
            **kwargs: See `nn.Module.apply`.
        """
        return super().apply(bake(variables), *args, **kwargs)

    def conv(self) -> Layer:
        """Returns a maker of 3x3 convolutions: stride 1, padding 1, no bias, unless overridden."""
        return functools.partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=((1, 1), (1, 1)),
            use_bias=False,
            conv_general_dilated=ops.conv_general_dilated,
            kernel_init=he_normal_fan_out,
            dtype=self.dtype,
        )

    def max_pool(self, x: jax.Array) -> jax.Array:
        """Applies 2x2 max-pooling of stride 2; a method, so that `SparseNetwork` can replace it."""
        return ops.max_pool(x, (2, 2), (2, 2))

    def dense(self) -> Layer:
        """Returns a maker of dense layers with bias."""
        return functools.partial(
            nn.Dense,
            kernel_init=uniform_fan_in,
            dtype=self.dtype,
        )

    def norm(self, *, train: bool) -> Layer:
        """Returns a maker of BatchNorms.

        They use batch statistics, over `axis_name` too, if `train`, else the running ones.
        """
        return functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            axis_name=self.axis_name if train else None,
            dtype=self.dtype,
        )


def normalize(images: Images, normalization: Normalization | None) -> Images:
    """Computes (images - mean) / deviation, channel by channel.

    Args:
        images: Images in [0, 1].
        normalization: Mean and deviation of every channel; None leaves the images as they are.

    Returns:
        The normalised images, as float32: half of its digits would be lost on 1/255 of a pixel.

    Raises:
        ValueError: For another number of channels.
    """
    if normalization is None:
        return images
    images = images.astype(jnp.float32)
    mean, deviation = (jnp.asarray(v, images.dtype).reshape(1, 1, 1, -1) for v in normalization)
    if mean.size != images.shape[-1]:
        raise ValueError(f"normalization of {mean.size} channels, images of {images.shape[-1]}")
    return (images - mean) / deviation
