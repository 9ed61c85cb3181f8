"""Residual networks for 32x32 images (He et al., 2016), in the authors' shapes."""

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from harp_jax.models.blocks import Layer, conv_layer, dense_layer, norm_layer, uniform_fan_in
from harp_jax.pruning.scores import Granularity
from harp_jax.types import Images, Logits, PRNGKey


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to their input, then ReLU.

    Where the shape changes, the input goes through a 1x1 convolution with BatchNorm.

    Attributes:
        width: Output channels.
        stride: Step of the first convolution along height and width.
        conv: Makes a convolution; 3x3 with padding 1 and without bias by default.
        norm: Makes a BatchNorm.
    """

    width: int
    stride: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Features `[batch, height, width, channels]` -> features, smaller by the stride."""
        strides = (self.stride, self.stride)
        y = self.conv(self.width, strides=strides, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.width, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if x.shape != y.shape:
            x = self.conv(
                self.width,
                kernel_size=(1, 1),
                strides=strides,
                padding=((0, 0), (0, 0)),
                name="shortcut",
            )(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A 3x3 convolution, stages of residual blocks, the mean over all pixels and a dense layer.

    The first stage keeps the size of the images; each later one halves it and doubles the width.
    Names follow the paper: conv1, then block b of stage s is conv{s + 1}_{b}. Initial values are
    PyTorch's defaults, as the authors leave them.

    Attributes:
        num_classes: Number of logits.
        stages: Number of blocks in each stage.
        width: Channels of the first convolution and of the first stage.
        granularity: See `harp_jax.models.create`.
        axis_name: See `harp_jax.models.create`.
    """

    num_classes: int
    stages: Sequence[int]
    width: int = 64
    granularity: Granularity | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of images in [0, 1]."""
        conv = functools.partial(conv_layer(self.granularity), kernel_init=uniform_fan_in)
        dense = dense_layer(self.granularity)
        norm = norm_layer(self.axis_name, train=train)
        x = conv(self.width, name="conv1")(images)
        x = nn.relu(norm(name="norm1")(x))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = BasicBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"conv{stage + 2}_{block + 1}",
                )(x)
        x = x.mean((1, 2))
        bias_init = functools.partial(_uniform, bound=1 / math.sqrt(x.shape[-1]))
        return dense(self.num_classes, bias_init=bias_init, name="dense1")(x)


def _uniform(key: PRNGKey, shape: Sequence[int], dtype: DTypeLike, *, bound: float) -> jax.Array:
    """An initialiser: uniform within +-bound."""
    return jax.random.uniform(key, shape, dtype, -bound, bound)


resnet18 = functools.partial(ResNet, stages=(2, 2, 2, 2))
