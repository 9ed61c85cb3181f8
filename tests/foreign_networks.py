"""Networks as other people write them: plain linen modules that know nothing of this package."""

import flax.linen as nn
import jax.numpy as jnp


class Separable(nn.Module):
    """Depthwise-separable convolutions, one with dilation, and an inverted residual block."""

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.width, (3, 3), use_bias=False)(images)
        x = nn.relu6(nn.BatchNorm(not train, momentum=0.9)(x))
        for factor, dilation in ((2, 1), (2, 2)):
            x = self.depthwise(x, train, dilation)
            x = nn.Conv(factor * self.width, (1, 1), use_bias=False)(x)
            x = nn.relu6(nn.BatchNorm(not train, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2)) if dilation == 1 else x
        y = nn.relu6(nn.Conv(3 * self.width, (1, 1))(x))
        y = self.depthwise(y, train)
        x = x + nn.Conv(2 * self.width, (1, 1))(y)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

    def depthwise(self, x, train, dilation=1):
        channels = x.shape[-1]
        x = nn.Conv(
            channels,
            (3, 3),
            feature_group_count=channels,
            kernel_dilation=dilation,
            use_bias=False,
        )(x)
        return nn.relu6(nn.BatchNorm(not train, momentum=0.9)(x))


class DenseBlocks(nn.Module):
    """Concatenations, as of DenseNet: every layer reads all features before it."""

    num_classes: int
    growth: int = 8

    @nn.compact
    def __call__(self, images, train=False):
        def norm(x):
            return nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))

        x = nn.Conv(2 * self.growth, (3, 3))(images)
        for block in range(2):
            for _ in range(2):
                y = nn.Conv(2 * self.growth, (1, 1), use_bias=False)(norm(x))
                y = nn.Conv(self.growth, (3, 3), use_bias=False)(norm(y))
                x = jnp.concatenate([x, y], -1)
            if block == 0:
                x = nn.Conv(2 * self.growth, (1, 1), use_bias=False)(norm(x))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(norm(x).mean((1, 2)))


class Next(nn.Module):
    """A patch stem and blocks of a depthwise convolution, LayerNorm and an MLP, as of ConvNeXt."""

    num_classes: int
    width: int = 16
    depth: int = 2

    def setup(self):
        self.stem = nn.Sequential([nn.Conv(self.width, (2, 2), (2, 2)), nn.LayerNorm()])
        self.blocks = [Block(self.width) for _ in range(self.depth)]
        self.head = nn.Sequential([nn.LayerNorm(), nn.Dense(self.num_classes)])

    def __call__(self, images, train=False):
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(self.width, (3, 3), feature_group_count=self.width)(x)
        y = nn.Dense(3 * self.width)(nn.LayerNorm()(y))
        y = nn.Dense(self.width)(nn.gelu(y))
        scale = self.param("scale", nn.initializers.constant(0.5), (self.width,))
        return x + scale.reshape(1, 1, 1, -1) * y


class Attentive(nn.Module):
    """Patches, positions, attention, a transposed convolution: much that stays dense."""

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(self.width, (2, 2), (2, 2), name="patches")(images)
        x = nn.relu(nn.ConvTranspose(self.width, (2, 2), name="up")(x))
        x = nn.GroupNorm(4)(x)
        x = x.reshape(len(x), -1, self.width)
        x = x + self.param("position", nn.initializers.normal(0.1), (1, x.shape[1], self.width))
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(2 * self.width)(x)))
        return nn.Dense(self.num_classes)(x.mean(1))


def separable(num_classes):
    return Separable(num_classes)


def dense_blocks(num_classes):
    return DenseBlocks(num_classes)


def next_blocks(num_classes):
    return Next(num_classes)


def attentive(num_classes):
    return Attentive(num_classes)
