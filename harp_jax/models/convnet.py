"""Small plain convolutional networks: `cnn` for 28x28 grey images, `tiny` for 8x8 ones."""

import functools
from collections.abc import Sequence

import flax.linen as nn

from harp_jax.models.blocks import conv_layer, dense_layer, max_pool, norm_layer
from harp_jax.pruning.scores import Granularity
from harp_jax.types import Images, Logits


class ConvNet(nn.Module):
    """[3x3 convolution, BatchNorm, ReLU, 2x2 max-pool] per width, then two dense layers.

    Attributes:
        num_classes: Number of logits.
        widths: Output channels of each convolution.
        hidden: Width of the first dense layer.
        granularity: See `harp_jax.models.create`.
        axis_name: See `harp_jax.models.create`.
    """

    num_classes: int
    widths: Sequence[int]
    hidden: int
    granularity: Granularity | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Logits of images in [0, 1]."""
        conv, dense = conv_layer(self.granularity), dense_layer(self.granularity)
        norm = norm_layer(self.axis_name, train=train)
        x = images
        for number, width in enumerate(self.widths, start=1):
            x = conv(width, name=f"conv{number}")(x)
            x = nn.relu(norm(name=f"norm{number}")(x))
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(dense(self.hidden, name="dense1")(x))
        return dense(self.num_classes, name="dense2")(x)


cnn = functools.partial(ConvNet, widths=(16, 32, 64), hidden=128)
tiny = functools.partial(ConvNet, widths=(8, 16), hidden=32)
