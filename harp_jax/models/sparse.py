"""A network that computes with the kept weights of its kernels alone, for CPUs."""

import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.linear import canonicalize_padding
from jax import lax

from harp_jax import native, ops
from harp_jax.models.blocks import Network
from harp_jax.native import BATCH_LAST
from harp_jax.ops import sparse_conv
from harp_jax.ops.geometry import Padding, Pair
from harp_jax.ops.pool import batch_last_max_pool
from harp_jax.ops.sparse_conv import FEW_IMAGES, Kept
from harp_jax.pruning.layers import Path, bake, kernel_paths, leaves_by_path
from harp_jax.types import Images, Variables

_WORTH_COMPILING = 10_000  # weights of a network


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
        latest: list[Any] = [None]  # the output of the latest sparse layer
        with nn.intercept_methods(functools.partial(self._layer, latest)):
            return self.network.apply(variables, images, **options)

    def _layer(
        self, latest: list[Any], call: Any, arguments: Any, options: Any, context: Any
    ) -> Any:
        module: Any = context.module
        alone = len(arguments) == 1  # flags that are given by place are the network's own to read
        if isinstance(module, nn.BatchNorm) and alone and arguments[0] is latest[0]:
            return _batch_norm(module, arguments[0], call, options)
        if context.method_name == "max_pool" and isinstance(module, Network):
            (x,) = arguments
            fits = min(x.shape[1:3]) >= 2 and len(x) >= FEW_IMAGES and x.dtype == np.float32
            return batch_last_max_pool(x) if fits else call(x)
        kept = self.kept.get((*module.path, "kernel"))
        if kept is None or context.method_name != "__call__" or not _is_plain(module) or options:
            return call(*arguments, **options)
        (x,) = arguments
        other = x.dtype != np.float32 or (isinstance(module, nn.Conv) and x.ndim != 4)
        if other or not sparse_conv.pays_with(len(x), kept):
            return call(x)
        kernel = jnp.asarray(module.get_variable("params", "kernel"))
        values = kept.values(kernel.reshape(kept.shape))
        if isinstance(module, nn.Conv):
            y = sparse_conv.conv(x, values, kept, *_geometry(module, x.shape[1:3]))
        else:
            rows = x.reshape(math.prod(x.shape[:-1]), 1, 1, x.shape[-1])
            y = sparse_conv.conv(rows, values, kept, (1, 1), ((0, 0), (0, 0)))
            y = y.reshape(*x.shape[:-1], -1)
        if module.use_bias:
            y += module.get_variable("params", "bias").reshape((1,) * (y.ndim - 1) + (-1,))
        latest[0] = y
        return y

    @functools.cached_property
    def digest(self) -> str:
        """Digest of which weights are kept; equal ones compile to equal programs."""
        digest = hashlib.sha256()
        for path, kept in sorted(self.kept.items()):
            digest.update(repr((path, kept.shape)).encode() + kept.index.tobytes())
        return digest.hexdigest()


def kept_weights(params: Variables) -> dict[Path, Kept]:
    """Lists the weights of kernels that are not 0.

    Args:
        params: Masks, or params with the masks applied, as concrete arrays.

    Returns:
        The kept weights by path, to compute with; a dense layer's kernel counts as one of 1x1.
    """
    leaves, found = leaves_by_path(params), {}
    for path in kernel_paths(params):
        mask = np.asarray(jax.device_get(leaves[path])) != 0
        if mask.ndim in (2, 4):
            found[path] = Kept.of(mask.reshape((1,) * (4 - mask.ndim) + mask.shape))
    return found


def fastest(network: nn.Module, variables: Variables) -> nn.Module | SparseNetwork:
    """Chooses the form in which a pruned network of fixed masks computes fastest on a CPU.

    Args:
        network: The network; it computes in float32.
        variables: Its variables, as concrete arrays. Without scores and rates, weights of 0 are
            those that are pruned.

    Returns:
        A sparse network with those layers where `sparse_conv.pays`; the network itself if there are
        none, if it has so few weights that another program takes longer to compile than it saves,
        or without `native.available()`.
    """
    leaves = leaves_by_path(variables["params"])
    weights = sum(leaves[path].size for path in kernel_paths(variables["params"]))
    if weights < _WORTH_COMPILING or not native.available():
        return network
    masks = variables["params"]
    if "scores" in variables:
        ones = jax.tree.map(np.ones_like, jax.device_get(masks))
        masks = jax.jit(bake)({**variables, "params": ones})["params"]
    kept = {path: each for path, each in kept_weights(masks).items() if sparse_conv.pays(each)}
    return SparseNetwork(network, kept) if kept else network


def _batch_norm(module: nn.BatchNorm, x: Any, call: Any, options: dict[str, Any]) -> Any:
    """Normalises a sparse layer's output, which is stored with the batch last, as it lies.

    XLA's CPU backend wants the operands of a sum in the order of their axes, and copies others.
    The barriers keep it from moving the transpositions, which cost nothing here, into the sums.
    """
    running = options.get("use_running_average", module.use_running_average)
    stored = x.ndim == 4 and len(x) >= FEW_IMAGES and module.axis == -1
    if running or not stored or "mask" in options:
        return call(x, **options)
    same = module.clone(parent=None, name=None, axis=BATCH_LAST.index(3))
    turned = lax.optimization_barrier(x.transpose(BATCH_LAST))
    y, changed = same.apply(module.variables, turned, **options, mutable=["batch_stats"])
    for name, value in changed["batch_stats"].items():
        module.put_variable("batch_stats", name, value)
    return lax.optimization_barrier(y).transpose(np.argsort(BATCH_LAST))


def _is_plain(module: Any) -> bool:
    """Returns whether a layer is dense or a convolution without groups, dilation and mask.

    Layers of classes of a user's own, or that multiply in a way or a type of their own, are not.
    """
    if jnp.dtype(getattr(module, "dtype", None) or jnp.float32) != jnp.float32:
        return False
    if type(module) is nn.Dense:
        return module.dot_general is None and module.dot_general_cls is None
    if (
        type(module) is not nn.Conv
        or module.feature_group_count != 1
        or module.mask is not None
        or module.conv_general_dilated not in (None, ops.conv_general_dilated)
        or module.conv_general_dilated_cls is not None
        or module.padding in ("CIRCULAR", "REFLECT", "CAUSAL")
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
