"""The networks of tests/golden/models.npz: their parameters by a formula, in PyTorch's layout."""

import math
from typing import NamedTuple

import numpy as np

from harp_jax.models.vgg import POOL, VGG16_PLAN


class Layer(NamedTuple):
    """A convolution or dense layer, with the BatchNorm beside it; dense layers have a bias."""

    name: str
    norm: str | None
    shape: tuple[int, ...]  # of the kernel, in PyTorch's layout


class Network(NamedTuple):
    """What the formula needs to make a network, and the authors' sizes of it."""

    layers: list[Layer]  # in order of the network
    stream: int  # of the first tensor
    flattened: dict[str, tuple[int, int, int]]  # see torch_layout.kernel
    weights: int
    parameters: int
    norm_first: bool = False  # whether a BatchNorm comes before its layer or after it


def vgg16_layers():
    layers, inputs = [], 3
    for width in VGG16_PLAN:
        if width != POOL:
            number = len(layers) + 1
            layers.append(Layer(f"conv{number}", f"norm{number}", (width, inputs, 3, 3)))
            inputs = width
    dense = [(256, 2048), (256, 256), (10, 256)]
    return layers + [Layer(f"dense{i}", None, shape) for i, shape in enumerate(dense, start=1)]


def resnet18_layers():
    layers, inputs = [Layer("conv1", "norm1", (64, 3, 3, 3))], 64
    for stage, width in enumerate([64, 128, 256, 512], start=2):
        for name in (f"conv{stage}_1/", f"conv{stage}_2/"):
            layers += [
                Layer(name + "conv1", name + "norm1", (width, inputs, 3, 3)),
                Layer(name + "conv2", name + "norm2", (width, width, 3, 3)),
            ]
            if inputs != width:
                shape = (width, inputs, 1, 1)
                layers.append(Layer(name + "shortcut", name + "shortcut_norm", shape))
            inputs = width
    return [*layers, Layer("dense1", None, (10, 512))]


def wrn_28_4_layers():
    layers, inputs = [Layer("conv1", None, (16, 3, 3, 3))], 16
    for stage, width in enumerate([64, 128, 256], start=2):
        for name in (f"conv{stage}_{block}/" for block in range(1, 5)):
            layers += [
                Layer(name + "conv1", name + "norm1", (width, inputs, 3, 3)),
                Layer(name + "conv2", name + "norm2", (width, width, 3, 3)),
            ]
            if inputs != width:
                layers.append(Layer(name + "shortcut", None, (width, inputs, 1, 1)))
            inputs = width
    return [*layers, Layer("dense1", "norm1", (10, 256))]


NETWORKS = {
    "vgg16_bn": Network(vgg16_layers(), 113_000, {"dense1": (2, 2, 512)}, 15_302_848, 15_311_818),
    "resnet18": Network(resnet18_layers(), 213_000, {}, 11_164_352, 11_173_962),
    "wrn_28_4": Network(wrn_28_4_layers(), 313_000, {}, 5_841_840, 5_849_050, norm_first=True),
}


def hashed(x):
    """A 32-bit integer hash; products wrap around."""
    x = np.asarray(x, np.uint32)
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def uniform(stream, shape):
    """Reproducible numbers in [0, 1), in the C order of PyTorch's layout."""
    start = hashed(np.array([stream]))
    return (hashed(np.arange(math.prod(shape), dtype=np.uint32) + start) / 2**32).reshape(shape)


def signed(stream, shape):
    return 2 * uniform(stream, shape) - 1


def scaled(stream, shape):
    return math.sqrt(6 / math.prod(shape[1:])) * signed(stream, shape)


def tensors(network):
    """The dense network's tensors and scores by the authors' rule: each from its own stream."""
    found, stream = {}, network.stream

    def add(name, make):
        nonlocal stream
        found[name] = make(stream)
        stream += 1

    def add_norm(norm, width):
        if norm is not None:
            add(f"{norm}.weight", lambda s: 1 + 0.1 * signed(s, width))
            add(f"{norm}.bias", lambda s: 0.1 * signed(s, width))

    for layer, norm, shape in network.layers:
        if network.norm_first:
            add_norm(norm, shape[1:2])
        add(f"{layer}.weight", lambda s, shape=shape: scaled(s, shape))
        if len(shape) == 2:
            add(f"{layer}.bias", lambda s, width=shape[:1]: 0.1 * signed(s, width))
        add(f"{layer}.popup_scores", lambda s, shape=shape: scaled(s, shape))
        stream += 1  # the rate logits are listed
        if not network.norm_first:
            add_norm(norm, shape[:1])
    for _, norm, shape in network.layers:
        if norm is not None:
            width = shape[1:2] if network.norm_first else shape[:1]
            add(f"{norm}.running_mean", lambda s, width=width: 0.1 * signed(s, width))
            add(f"{norm}.running_var", lambda s, width=width: 0.5 + uniform(s, width))
    return found
