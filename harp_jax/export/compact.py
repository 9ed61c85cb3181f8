"""Turns a pruned network into a smaller dense network with the same logits."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harp_jax import models
from harp_jax.data import to_unit
from harp_jax.export.compact_folding import fold
from harp_jax.export.compact_graph import WITH_KERNEL, CompactNetwork
from harp_jax.export.compact_narrowing import narrow
from harp_jax.export.compact_tracing import trace
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.costs import FLOPS_PER_WEIGHT, trace_layers
from harp_jax.pruning.layers import bake
from harp_jax.pruning.sparsity import LayerSparsity
from harp_jax.types import Images, LogitsFn, RawImages, Variables

TOLERANCE = 1e-4  # of the largest logit
_CHUNK = 128  # images that are compared at once


class Compact(NamedTuple):
    """A compact network: `model.apply(variables, images)` gives the logits.

    Attributes:
        model: The network as a list of nodes, `model.nodes` (see `Node`).
        variables: Its float32 arrays: `variables['params']` by the node's name.
    """

    model: CompactNetwork
    variables: dict[str, Any]

    @property
    def logits_fn(self) -> LogitsFn:
        """A function from images in [0, 1] to logits; compile it with `jax.jit`."""
        return models.logits_fn(self.model, self.variables)

    @property
    def widths(self) -> dict[str, int]:
        """Number of outputs (channels or features) by layer, in the order of the network."""
        return {node.name: node.outputs[-1] for node in self.model.nodes if node.op in WITH_KERNEL}

    @property
    def layers(self) -> list[LayerSparsity]:
        """Weights and FLOPs by layer; `kept` and `kept_flops` are those of weights that are not 0.

        Zeros remain where a weight is masked between two units that stay.
        """
        rows = []
        for node in self.model.nodes:
            if node.op in WITH_KERNEL:
                kernel = self.variables["params"][node.name]["kernel"]
                kept = int(np.count_nonzero(kernel))
                flops = FLOPS_PER_WEIGHT * math.prod(node.outputs[:-1])
                rows.append(
                    LayerSparsity(
                        node.name, kernel.size, kept, None, flops * kernel.size, flops * kept
                    )
                )
        return rows


def compact(
    model: nn.Module,
    variables: Variables,
    images: Images | RawImages | np.ndarray | Architecture,
    *,
    round_to: int = 1,
) -> Compact:
    """Builds the network without the units that do nothing.

    Units are channels and features. Those that nothing reads are left out, and those that nothing
    feeds: such a unit is constant, and its constant goes into the biases of the next layers. A
    convolution that pads with zeros does not see the constant at the border; for it one constant
    unit stays in place of all. BatchNorm goes into weights and biases. Units that a residual
    addition joins are left out together.

    Args:
        model: Any linen module without loops that computes in float32. Convolutions, depthwise
            ones too, dense layers, BatchNorm, pooling, additions, concatenations, means over all
            pixels and functions entry by entry become smaller; all other steps stay as they are.
        variables: Its variables; pruned by weight or channel, or dense.
        images: Real images `[batch, height, width, channels]`, uint8 or floats in [0, 1], on which
            the logits are compared; the network is made for images of this size. Or the result of
            `channels.trace`: then the logits are compared on uniform noise, if the first
            convolution keeps the size of the images.
        round_to: Widths are rounded up to multiples of this number, >= 1, with units that do
            nothing, but not above what they were.

    Returns:
        The compact network: model and variables, as a pair.

    Raises:
        ValueError: If the network has a loop or mixes images, computes in another type, or if the
            logits differ by more than 1e-4 of the largest logit.
    """
    if round_to < 1:
        raise ValueError(f"round_to={round_to}: allowed are numbers >= 1")
    if isinstance(images, Architecture):
        images = _noise(model, images)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images: of shape {images.shape}; allowed are batches of NHWC images")
    if images.dtype == np.uint8:
        images = to_unit(jnp.asarray(images))
    plain = jax.jit(bake)(variables)
    graph = trace(model, plain, images.shape[1:])
    fold(graph)
    nodes, params = narrow(graph, round_to)
    smaller = Compact(CompactNetwork(nodes), {"params": params})
    _check(models.logits_fn(model, plain), smaller.logits_fn, images)
    return smaller


def _noise(model: nn.Module, architecture: Architecture) -> Images:
    """Returns uniform noise of the size of an architecture's images."""
    if not architecture.layers:
        raise ValueError("architecture: has no layers; allowed are those of `channels.trace`")
    first = architecture.layers[0]
    shape = (*first.outputs[:-1], first.kernel[-2])
    if len(shape) != 3 or tuple(trace_layers(model, shape)) != architecture.layers:
        raise ValueError(
            f"architecture: its first layer has outputs of {first.outputs}, which does not tell"
            " the size of the images; allowed are images"
        )
    return jax.random.uniform(jax.random.key(0), (4, *shape))


def _check(masked: LogitsFn, smaller: LogitsFn, images: Any) -> None:
    """Compares the logits of two functions, in true float32 on every platform."""
    both = jax.jit(lambda batch: (masked(batch), smaller(batch)))
    with jax.default_matmul_precision("highest"):
        batches = [both(images[first : first + _CHUNK]) for first in range(0, len(images), _CHUNK)]
    expected, logits = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    difference = np.abs(logits - expected).max()
    if not difference <= TOLERANCE * np.abs(expected).max():
        raise ValueError(
            f"model: the compact network's logits differ by {difference:.2g}, the largest is"
            f" {np.abs(expected).max():.2g}; allowed is {TOLERANCE} of it"
        )
