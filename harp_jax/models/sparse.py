"""A network that computes with the kept weights of its kernels alone, for CPUs."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.linear import canonicalize_padding
from jax import lax

from harp_jax.ops import sparse_conv
from harp_jax.ops.cpu_conv import Padding, Pair
from harp_jax.ops.sparse_conv import Kept
from harp_jax.pruning.layers import Path, kernel_paths, leaves_by_path
from harp_jax.types import Images, Variables


class SparseNetwork:
    """Stands for a network where only its `apply` is called.

    Logits, gradients and statistics are those of the network, but for rounding, where all weights
    that are not kept are 0. The gradient of these weights is 0.

    Attributes:
        network: Any network of `nn.Conv` and `nn.Dense`.
        kept: The kept weights of the kernels that are computed sparsely, by path; see
            `kept_weights`. Layers that are not in it stay dense, and so do grouped and dilated
            convolutions.
    """

    def __init__(self, network: nn.Module, kept: Mapping[Path, Kept]):
        self.network, self.kept = network, dict(kept)

    def apply(self, variables: Variables, images: Images, **options: Any) -> Any:
        """Computes what the network's `apply` computes.

        Args:
            variables: Plain variables, with the masks applied.
            images: [N, height, width, channels] in [0, 1].
            **options: As the network's `apply` takes them.
        """
        with nn.intercept_methods(self._layer):
            return self.network.apply(variables, images, **options)

    def _layer(self, call: Any, arguments: Any, options: Any, context: Any) -> Any:
        module: Any = context.module
        kept = self.kept.get((*module.path, "kernel"))
        if kept is None or context.method_name != "__call__" or not _is_plain(module):
            return call(*arguments, **options)
        (x,) = arguments
        kernel = module.get_variable("params", "kernel")
        values = kept.values(kernel.reshape(kept.shape))
        if isinstance(module, nn.Conv):
            y = sparse_conv.conv(x, values, kept, *_geometry(module, x.shape[1:3]))
        else:
            rows = x.reshape(math.prod(x.shape[:-1]), 1, 1, x.shape[-1])
            y = sparse_conv.conv(rows, values, kept, (1, 1), ((0, 0), (0, 0)))
            y = y.reshape(*x.shape[:-1], -1)
        if module.use_bias:
            y += module.get_variable("params", "bias").reshape((1,) * (y.ndim - 1) + (-1,))
        return y


def kept_weights(params: Variables, most: float = 1.0) -> dict[Path, Kept]:
    """Lists the weights of kernels that are not 0.

    Args:
        params: Params with the masks applied, as concrete arrays.
        most: Kernels that keep a larger share than this, in [0, 1], are left out.

    Returns:
        The kept weights by path, to compute with; a dense layer's kernel counts as one of 1x1.
    """
    leaves, found = leaves_by_path(params), {}
    for path in kernel_paths(params):
        mask = np.asarray(jax.device_get(leaves[path])) != 0
        if mask.ndim in (2, 4) and mask.mean() <= most:
            found[path] = Kept.of(mask.reshape((1,) * (4 - mask.ndim) + mask.shape))
    return found


def _is_plain(module: Any) -> bool:
    """Returns whether a layer is dense or a convolution without groups, dilation and mask."""
    if isinstance(module, nn.Dense):
        return True
    if (
        not isinstance(module, nn.Conv)
        or module.feature_group_count != 1
        or module.mask is not None
    ):
        return False
    dilations = (module.input_dilation, module.kernel_dilation)
    return all(np.all(np.equal(dilation or 1, 1)) for dilation in dilations)


def _geometry(module: nn.Conv, size: tuple[int, ...]) -> tuple[Pair, Padding]:
    """Returns a convolution's strides and padding (before, after), along height and width."""
    strides: Any = module.strides or 1
    strides = (strides, strides) if isinstance(strides, int) else tuple(strides)
    padding: Any = canonicalize_padding(module.padding, 2)
    if isinstance(padding, str):
        kernel: Any = module.kernel_size
        padding = lax.padtype_to_pads(size, kernel, strides, padding)
    (top, bottom), (left, right) = padding
    return strides, ((top, bottom), (left, right))
