"""VGG-16 with BatchNorm for 32x32 images (Simonyan & Zisserman, 2015), in the authors' shapes."""

import functools
from collections.abc import Sequence

import flax.linen as nn
from flax.linen import initializers

from harp_jax.models.blocks import Network
from harp_jax.types import Images, Logits

POOL = "pool"
VGG16_PLAN = (
    *(64, 64, POOL),
    *(128, 128, POOL),
    *(256, 256, 256, POOL),
    *(512, 512, 512, POOL),
    *(512, 512, 512),
)


class VGG(Network):
    """3x3 convolutions with BatchNorm and ReLU, then a dense classifier.

    There is no pooling after the last block: a 32x32 image enters the classifier as 2 * 2 * 512
    features.

    Attributes:
        num_classes: Number of logits.
        plan: Widths of the convolutions, with `POOL` where a 2x2 max-pool stands.
        hidden: Widths of the classifier's hidden layers.
    """

    CHANNELS = ("plan", "hidden")

    num_classes: int
    plan: Sequence[int | str] = VGG16_PLAN
    hidden: Sequence[int] = (256, 256)

    @nn.compact
    def classify(self, x: Images, *, train: bool) -> Logits:
        """Computes the logits of normalised images."""
        conv = self.conv()
        dense = functools.partial(self.dense(), kernel_init=initializers.normal(0.01))
        norm = self.norm(train=train)
        number = 0
        for entry in self.plan:
            if entry == POOL:
                x = self.max_pool(x)
                continue
            number += 1
            x = conv(entry, name=f"conv{number}")(x)
            x = nn.relu(norm(name=f"norm{number}")(x))
        x = x.reshape(x.shape[0], -1)
        for number, width in enumerate(self.hidden, start=1):
            x = nn.relu(dense(width, name=f"dense{number}")(x))
        return dense(self.num_classes, name=f"dense{len(self.hidden) + 1}")(x)


vgg16_bn = VGG
