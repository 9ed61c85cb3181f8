"""Small plain convolutional networks: `cnn` for 28x28 grey images, `tiny` for 8x8 ones."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from harp_jax.models.blocks import Network
from harp_jax.types import Images, Logits


class ConvNet(Network):
    """[3x3 convolution, BatchNorm, ReLU, 2x2 max-pool] per width, then two dense layers.

    Attributes:
        num_classes: Number of logits.
        widths: Output channels of each convolution.
        hidden: Width of the first dense layer.
    """

    CHANNELS = ("widths", "hidden")

    num_classes: int
    widths: Sequence[int]
    hidden: int

    @nn.compact
    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes the logits of normalised images."""
        conv, dense = self.conv(), self.dense()
        norm = self.norm(train=train)
        for number, width in enumerate(self.widths, start=1):
            x = conv(width, name=f"conv{number}")(x)
            x = nn.relu(norm(name=f"norm{number}")(x))
            x = self.max_pool(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(dense(self.hidden, name="dense1")(x))
        return dense(self.num_classes, name="dense2")(x)


cnn = functools.partial(ConvNet, widths=(16, 32, 64), hidden=128)
tiny = functools.partial(ConvNet, widths=(8, 16), hidden=32)
