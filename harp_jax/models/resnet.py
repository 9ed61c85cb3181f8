"""Residual networks for 32x32 images (He et al., 2016), in the authors' shapes."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from harp_jax.models.blocks import Layer, Network, uniform_bias, uniform_fan_in
from harp_jax.types import Images, Logits


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
        """Maps features `[batch, height, width, channels]` to features, smaller by the stride."""
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


class ResNet(Network):
    """A 3x3 convolution, stages of residual blocks, the mean over all pixels and a dense layer.

    The first stage keeps the size of the images; each later one halves it and doubles the width.
    Names follow the paper: conv1, then block b of stage s is conv{s + 1}_{b}. Initial values are
    PyTorch's defaults, as the authors leave them.

    Attributes:
        num_classes: Number of logits.
        stages: Number of blocks in each stage.
        width: Channels of the first convolution and of the first stage.
    """

    CHANNELS = ("width",)

    num_classes: int
    stages: Sequence[int]
    width: int = 64

    @nn.compact
    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes the logits of normalised images."""
        conv = functools.partial(self.conv(), kernel_init=uniform_fan_in)
        dense = self.dense()
        norm = self.norm(train=train)
        x = conv(self.width, name="conv1")(x)
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
        return dense(self.num_classes, bias_init=uniform_bias(x.shape[-1]), name="dense1")(x)


resnet18 = functools.partial(ResNet, stages=(2, 2, 2, 2))
