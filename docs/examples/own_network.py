"""A network of one's own: a plain multi-layer perceptron, without any normalisation.

    --config.model=own_network:mlp

Any linen module of `nn.Conv` and `nn.Dense` is pruned as it is.
"""

import flax.linen as nn


class MLP(nn.Module):
    """Dense layers with ReLU.

    Attributes:
        num_classes: Number of logits.
        widths: Of the hidden layers.
    """

    num_classes: int
    widths: tuple[int, ...] = (64, 32)

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        for number, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"dense{number}")(x))
        return nn.Dense(self.num_classes, name="classes")(x)


def mlp(num_classes):
    return MLP(num_classes)
