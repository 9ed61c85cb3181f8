"""Small networks of each kind that files are written of, with pruned variables."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harp_jax.export import Trained
from harp_jax.export.trained import counts, flat, tree
from harp_jax.models.bottleneck import BottleneckResNet
from harp_jax.models.convnet import ConvNet
from harp_jax.models.resnet import ResNet
from harp_jax.models.vgg import POOL, VGG
from harp_jax.models.wrn import WideResNet

convnet = functools.partial(ConvNet, widths=(4, 6), hidden=8)
vgg = functools.partial(VGG, plan=(4, POOL, 6, 8), hidden=(8, 8))
residual = functools.partial(ResNet, stages=(1, 1), width=4)
wide = functools.partial(WideResNet, depth=10, widen=1)
broad = functools.partial(ConvNet, widths=(4, 8), hidden=320)  # enough to compute sparsely
wider = functools.partial(ConvNet, widths=(16, 16), hidden=320)  # which 5 % leave alive
bottleneck = functools.partial(BottleneckResNet, stages=(1, 1), width=4)
KINDS = ("convnet", "vgg", "residual", "wide", "bottleneck")


def of_width(num_classes: int, width: float = 1.0) -> ConvNet:
    """A network of one's own that takes a width."""
    return convnet(num_classes=num_classes).scaled(width)


class Varied(nn.Module):
    """What a network of one's own may do: odd strides and paddings, other layers, activations."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(6, (3, 3), strides=(2, 2), padding="SAME", name="conv1")(images)
        x = nn.gelu(nn.BatchNorm(use_running_average=not train, name="norm1")(x))
        y = nn.Conv(6, (2, 3), padding=((1, 0), (2, 0)), feature_group_count=3, name="conv2")(x)
        y = nn.avg_pool(nn.leaky_relu(y), (2, 2), (2, 2), "SAME")
        x = nn.max_pool(jnp.pad(nn.silu(x), ((0, 0), (1, 0), (0, 1), (0, 0))), (3, 3), (2, 2))
        x = jnp.concatenate([x[:, :2, :2], jnp.clip(y[:, :2, :2], -1.0, 1.0)], axis=3)
        x = nn.LayerNorm(name="norm2")(x.transpose(0, 3, 1, 2).reshape(len(x), -1))
        return nn.Dense(self.num_classes, name="dense1")(jnp.tanh(x) - nn.softplus(x))


class Sorting(nn.Module):
    """A network with an operation that has no translation."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.num_classes)(jnp.sort(images.reshape(len(images), -1)))


class Looping(nn.Module):
    """A network with a loop, which cannot be compacted."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Dense(64)(images.reshape(len(images), -1)))
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x), None), x, length=3)
        return nn.Dense(self.num_classes)(x)


def pruned(
    network: nn.Module,
    name: str,
    shape: tuple[int, int, int] = (8, 8, 1),
    kept: float = 0.3,
    **metadata: Any,
) -> Trained:
    """A network whose arrays all are random, with a share of its weights kept.

    Args:
        network: A linen module.
        name: What files call it.
        shape: Height, width and channels of the images.
        kept: Share of each kernel that is not zero.
        metadata: Further metadata.
    """
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    random, leaves = np.random.default_rng(1), {}
    for path, leaf in flat(jax.device_get(variables)).items():
        if path.endswith("/kernel"):
            array = np.where(random.random(leaf.shape) < kept, 2 * leaf, 0)
        else:
            array = leaf + random.uniform(0.1, 0.5, leaf.shape)
        leaves[path] = array.astype(np.float32)
    found = {
        "model": name,
        "num_classes": 10,
        "image_shape": list(shape),
        "normalization": None,
        "compute_dtype": "float32",
        **metadata,
    }
    return Trained(network, tree(leaves), {**found, **counts(tree(leaves))})


@functools.cache
def small(kind: str) -> Trained:
    """One of `KINDS`, 30 % of its weights kept; for 8x8 grey images, or 16x12 with colours."""
    shape = (16, 12, 3) if kind == "bottleneck" else (8, 8, 1)
    return pruned(globals()[kind](num_classes=10), f"small_networks:{kind}", shape)


def images(trained: Trained, count: int = 5) -> np.ndarray:
    """Random images for a network."""
    shape = (count, *trained.image_shape)
    return np.random.default_rng(2).random(shape, np.float32)
