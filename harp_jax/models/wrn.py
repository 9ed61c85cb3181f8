"""Wide residual networks for 32x32 images (Zagoruyko & Komodakis, 2016), in the authors' shapes."""

import functools

import flax.linen as nn
import jax

from harp_jax.models.blocks import Layer, Network
from harp_jax.types import Images, Logits


class WideBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, added to the block's input.

    Where the width changes, the input is activated by the first BatchNorm and ReLU too, and goes
    through a 1x1 convolution.

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
        active = nn.relu(self.norm(name="norm1")(x))
        y = self.conv(self.width, strides=strides, name="conv1")(active)
        y = nn.relu(self.norm(name="norm2")(y))
        y = self.conv(self.width, name="conv2")(y)
        if x.shape[-1] != self.width:
            x = self.conv(
                self.width,
                kernel_size=(1, 1),
                strides=strides,
                padding=((0, 0), (0, 0)),
                name="shortcut",
            )(active)
        return x + y


class WideResNet(Network):
    """A 3x3 convolution, three stages of blocks, the mean over all pixels and a dense layer.

    The first stage keeps the size of the images; each later one halves it and doubles the width.
    Names follow the paper: conv1, then block b of stage s is conv{s + 1}_{b}. Kernels of
    convolutions start normal with variance 2 / fan_out, the dense layer's uniform, as PyTorch's.

    Attributes:
        num_classes: Number of logits.
        depth: Number of 3x3 convolutions and dense layers on the longest way: 6 n + 4 for n blocks
            in a stage.
        widen: The first stage has this many times the channels of the first convolution.
        width: Channels of the first convolution.
    """

    CHANNELS = ("width",)

    num_classes: int
    depth: int
    widen: int
    width: int = 16

    @nn.compact
    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes the logits of normalised images.

        Raises:
            ValueError: For a depth that is not 10, 16, 22, ...
        """
        blocks, rest = divmod(self.depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={self.depth}: allowed are 10, 16, 22, ...")
        conv = self.conv()
        norm = self.norm(train=train)
        x = conv(self.width, name="conv1")(x)
        for stage in range(3):
            for block in range(blocks):
                x = WideBlock(
                    width=self.width * self.widen * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"conv{stage + 2}_{block + 1}",
                )(x)
        x = nn.relu(norm(name="norm1")(x)).mean((1, 2))
        return self.dense()(self.num_classes, name="dense1")(x)


wrn_28_4 = functools.partial(WideResNet, depth=28, widen=4)
wrn_28_10 = functools.partial(WideResNet, depth=28, widen=10)
wrn_34_10 = functools.partial(WideResNet, depth=34, widen=10)
