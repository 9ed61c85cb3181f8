"""Residual networks of bottleneck blocks for ImageNet (He et al., 2016), as torchvision's."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from harp_jax import ops
from harp_jax.models.blocks import Layer, Network, uniform_bias
from harp_jax.types import Images, Logits

EXPANSION = 4  # a block's outputs have this many times its width


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with BatchNorm, added to their input, then ReLU.

    Where the shape changes, the input goes through a 1x1 convolution with BatchNorm. The 3x3
    convolution has the stride (the first one in the paper), as in the form now known as v1.5.

    Attributes:
        width: Channels of the first two convolutions; the third has `EXPANSION` times as many.
        stride: Step of the 3x3 convolution along height and width.
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
        pointwise = functools.partial(self.conv, kernel_size=(1, 1), padding=((0, 0), (0, 0)))
        y = pointwise(self.width, name="conv1")(x)
        y = nn.relu(self.norm(name="norm1")(y))
        y = self.conv(self.width, strides=strides, name="conv2")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        y = pointwise(EXPANSION * self.width, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        if x.shape != y.shape:
            x = pointwise(EXPANSION * self.width, strides=strides, name="shortcut")(x)
            x = self.norm(name="shortcut_norm")(x)
        return nn.relu(x + y)


class BottleneckResNet(Network):
    """A 7x7 convolution and a 3x3 max-pool, both of stride 2, stages of blocks, a dense layer.

    The first stage keeps the size that the pooling leaves, each later one halves it and doubles the
    width; the dense layer reads the mean over all pixels. Images may have any size. Names follow
    the paper: conv1, then block b of stage s is conv{s + 1}_{b}. Kernels of convolutions start
    normal with variance 2 / fan_out, the dense layer as PyTorch's, as torchvision has it.

    Attributes:
        num_classes: Number of logits.
        stages: Number of blocks in each stage.
        width: Channels of the first convolution, and width of the first stage's blocks.
    """

    CHANNELS = ("width",)

    num_classes: int
    stages: Sequence[int]
    width: int = 64

    @nn.compact
    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes the logits of normalised images."""
        conv, norm = self.conv(), self.norm(train=train)
        stem = functools.partial(conv, kernel_size=(7, 7), padding=((3, 3), (3, 3)))
        x = stem(self.width, strides=(2, 2), name="conv1")(x)
        x = nn.relu(norm(name="norm1")(x))
        x = ops.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"conv{stage + 2}_{block + 1}",
                )(x)
        x = x.mean((1, 2))
        bias_init = uniform_bias(x.shape[-1])
        return self.dense()(self.num_classes, bias_init=bias_init, name="dense1")(x)


resnet50 = functools.partial(BottleneckResNet, stages=(3, 4, 6, 3))
