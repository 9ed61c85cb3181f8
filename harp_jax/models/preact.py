"""Residual networks with activations in front (He et al., 2016b), as robust networks have them."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from harp_jax.models.blocks import Layer, Network, uniform_bias, uniform_fan_in
from harp_jax.types import Images, Logits


class PreActBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, added to the block's input.

    Where the shape changes, a 1x1 convolution takes the place of the input.

    Attributes:
        width: Output channels.
        stride: Step of the first convolution along height and width.
        activated: Whether the 1x1 convolution reads the input after BatchNorm and ReLU.
        conv: Makes a convolution; 3x3 with padding 1 and without bias by default.
        norm: Makes a BatchNorm.
    """

    width: int
    stride: int
    activated: bool
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps features `[batch, height, width, channels]` to features, smaller by the stride."""
        strides = (self.stride, self.stride)
        active = nn.relu(self.norm(name="norm1")(x))
        y = self.conv(self.width, strides=strides, name="conv1")(active)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(self.width, name="conv2")(y)
        if x.shape != y.shape:
            x = self.conv(
                self.width,
                kernel_size=(1, 1),
                strides=strides,
                padding=((0, 0), (0, 0)),
                name="shortcut",
            )(active if self.activated else x)
        return x + y


class PreActResNet(Network):
    """A 3x3 convolution, stages of blocks, the mean over all pixels and a dense layer.

    The first stage keeps the size of the images; each later one halves it and doubles the width.
    Names follow the paper: conv1, then block b of stage s is conv{s + 1}_{b}. Initial values are
    PyTorch's defaults.

    Attributes:
        num_classes: Number of logits.
        stages: Number of blocks in each stage.
        width: Channels of the first convolution and of the first stage.
        activated: Whether shortcuts read activated features, and BatchNorm and ReLU stand behind
            the last block.
    """

    CHANNELS = ("width",)

    num_classes: int
    stages: Sequence[int]
    width: int = 64
    activated: bool = False

    @nn.compact
    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes the logits of normalised images."""
        conv = functools.partial(self.conv(), kernel_init=uniform_fan_in)
        norm = self.norm(train=train)
        x = conv(self.width, name="conv1")(x)
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = PreActBlock(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    activated=self.activated,
                    conv=conv,
                    norm=norm,
                    name=f"conv{stage + 2}_{block + 1}",
                )(x)
        if self.activated:
            x = nn.relu(norm(name="norm1")(x))
        x = x.mean((1, 2))
        dense = self.dense()
        return dense(self.num_classes, bias_init=uniform_bias(x.shape[-1]), name="dense1")(x)


preact_resnet18 = functools.partial(PreActResNet, stages=(2, 2, 2, 2))
preact_resnet18_v2 = functools.partial(PreActResNet, stages=(2, 2, 2, 2), activated=True)
