"""Costs of layers in parameters and in FLOPs, and the costs that a budget can limit.

FLOPs are the multiplications and additions of kernels on one image, two per multiply-accumulate.
Additions of biases, BatchNorm, activations and pooling are not counted: pruning is about kernels,
and the rest is below 2 % of these networks. Products with a convolution's zero padding are counted,
as is usual.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import tracers

from harp_jax.pruning.layers import Path, kernel_paths, layer_name, leaves_by_path
from harp_jax.pruning.masks import kept_weights
from harp_jax.types import Images, PRNGKey, Rate, Scalar, Variables

FLOPS_PER_WEIGHT = 2  # a multiplication and an addition, at every position of the output


class Layer(NamedTuple):
    """A convolution or dense layer, and its output for one image.

    Attributes:
        path: Path of its kernel in `params`.
        kernel: Shape of its kernel, HWIO or IO.
        outputs: Shape of its output without the batch axis; channels are last, all in one axis.
        groups: Groups of input channels that are read by outputs of their own; 1 of a dense layer.
        general: Whether its channels cannot be told: it reads or writes several axes at once
            (`nn.DenseGeneral`), or is inside a transformation such as `nn.remat`.
    """

    path: Path
    kernel: tuple[int, ...]
    outputs: tuple[int, ...]
    groups: int = 1
    general: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether it reads each channel for one output alone."""
        return self.groups > 1 and self.kernel[-2:] == (1, self.groups)

    @property
    def flops_per_weight(self) -> int:
        """FLOPs that one entry of the kernel costs."""
        return FLOPS_PER_WEIGHT * math.prod(self.outputs[:-1])

    @property
    def flops(self) -> int:
        """FLOPs of the whole kernel."""
        return self.flops_per_weight * math.prod(self.kernel)


def trace_layers(model: nn.Module, image_shape: Sequence[int]) -> list[Layer]:
    """Finds the convolutions and dense layers of a network by one abstract trace.

    Args:
        model: Any linen module from NHWC images to logits.
        image_shape: (height, width, channels).

    Returns:
        One entry a layer, in the order of the calls.

    Raises:
        ValueError: As `trace_variables`.
    """
    return trace_variables(model, image_shape)[0]


def trace_variables(
    model: nn.Module, image_shape: Sequence[int]
) -> tuple[list[Layer], dict[str, Any]]:
    """Finds the layers of a network and the shapes of its variables by one abstract trace.

    Layers are `nn.Conv`, `nn.Dense` and `nn.DenseGeneral` that have a kernel of their own, not one
    of several that `nn.scan` or `nn.vmap` stack.

    Args:
        model: Any linen module from NHWC images to logits.
        image_shape: (height, width, channels).

    Returns:
        One entry a layer, in the order of the calls, and all variables, as shape structs.

    Raises:
        ValueError: If a layer is called twice, so that its kernel has two places in the network, or
            if pooling leaves no pixels of such images for it.
    """
    layers: dict[Path, Layer] = {}
    calls: dict[Path, int] = {}
    level: list[Any] = []

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs, module = call(*args, **kwargs), context.module
        general = context.method_name == "__call__" and isinstance(module, nn.DenseGeneral)
        if (general or is_kernel_call(context)) and module.has_variable("params", "kernel"):
            path = kernel_path(module)
            calls[path] = calls.get(path, 0) + 1
            inside = tracers.current_trace() != level[0]
            layers[path] = _layer(module, outputs.shape, general or inside)
        return outputs

    def init(key: PRNGKey, images: Images) -> Any:
        level[:] = [tracers.current_trace()]
        return model.init(key, images)  # a function of its own: JAX may know `model.init` already

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        shapes = jax.eval_shape(init, jax.random.key(0), images)
    kernels = leaves_by_path(shapes.get("params", {}))
    found = [
        layer
        for path, layer in layers.items()
        if path in kernels and kernels[path].shape == layer.kernel
    ]
    for layer in found:
        if calls[layer.path] > 1:
            raise ValueError(
                f"layer {layer_name(layer.path)!r} is called twice; allowed are layers called once"
            )
        if 0 in layer.kernel + layer.outputs:
            raise ValueError(f"nothing is left of them for layer {layer_name(layer.path)!r}")
    return found, shapes


def _layer(module: Any, outputs: tuple[int, ...], general: bool) -> Layer:
    """Describes a layer by its module and the output for one image."""
    kernel = module.get_variable("params", "kernel").shape
    axes = len(np.atleast_1d(module.features)) if isinstance(module, nn.DenseGeneral) else 1
    # Modules may fold other axes into that of the batch; these are of the image too.
    places = outputs[1:-axes] if outputs[0] == 1 else outputs[:-axes]
    channels = math.prod(outputs[-axes:])
    groups = getattr(module, "feature_group_count", 1)
    return Layer(kernel_path(module), kernel, (*places, channels), groups, general)


def is_kernel_call(context: Any) -> bool:
    """Returns whether a method call seen by `nn.intercept_methods` is a pass through a kernel."""
    return context.method_name == "__call__" and isinstance(context.module, nn.Conv | nn.Dense)


def kernel_path(module: nn.Module) -> Path:
    """Returns the path of a bound layer's kernel in `params`."""
    return (*module.path, "kernel")


def parameter_costs(params: Variables, paths: Sequence[Path] | None = None) -> dict[Path, int]:
    """Counts the weights of every kernel. Biases and BatchNorm are never pruned and not counted.

    Args:
        params: The `params` collection (arrays or shape structs).
        paths: The kernels to count; by default all of them.

    Returns:
        Kernel sizes by path, in tree order.
    """
    leaves = leaves_by_path(params)
    return {path: leaves[path].size for path in (paths or kernel_paths(params))}


@runtime_checkable
class Cost(Protocol):
    """A quantity that a budget limits, as a function of the layers' compression rates."""

    @property
    def unit(self) -> str:
        """The unit of the cost in words, e.g. 'weights'."""
        ...

    @property
    def total(self) -> int:
        """The cost of the dense network."""
        ...

    def soft_share(self, rates: Any) -> Scalar:
        """Computes the share of `total` that continuous rates cost; differentiable.

        Args:
            rates: A tree whose leaves are the rates of the pruned kernels in the tree order of
                `params`: by path, or nested as there.
        """
        ...

    def kept(self, rates: Mapping[Any, Rate]) -> int:
        """Computes what the masks of these rates, by path, cost: a whole number up to `total`."""
        ...

    def equal_rates(self, path: Any, rate: Rate) -> tuple[float, float]:
        """Returns the ends of the range of rates that keep as much of a kernel as this one."""
        ...

    def target_share(self, rate: float) -> float:
        """Computes the share of `total` that a budget at the overall rate `rate` allows."""
        ...


@dataclasses.dataclass(frozen=True)
class WeightCost:
    """The number of kept weights: a `Cost`.

    Attributes:
        sizes: Number of weights of every pruned kernel: by path, or as any tree or sequence in the
            structure of the rates if only soft shares are asked for.
    """

    sizes: Any
    unit = "weights"

    @property
    def total(self) -> int:
        """The number of all weights of the pruned kernels."""
        return sum(jax.tree.leaves(self.sizes))

    def soft_share(self, rates: Any) -> Scalar:
        """Computes sum(n_l * a_l) / sum(n_l)."""
        rates, sizes = jax.tree.leaves(rates), jax.tree.leaves(self.sizes)
        kept = sum(size * rate for size, rate in zip(sizes, rates, strict=True))
        return jnp.asarray(kept / sum(sizes), jnp.float32)

    def kept(self, rates: Mapping[Any, Rate]) -> int:
        """Counts the weights that the masks keep."""
        return sum(int(kept_weights(rate, self.sizes[path])) for path, rate in rates.items())

    def equal_rates(self, path: Any, rate: Rate) -> tuple[float, float]:
        """Returns the rates of one weight less, exclusive, and of as many as the mask keeps."""
        size = self.sizes[path]
        kept = int(kept_weights(rate, size))
        return (kept - 1) / size, kept / size

    def target_share(self, rate: float) -> float:
        """Returns `rate` itself: the target is a share of the weights."""
        return rate
