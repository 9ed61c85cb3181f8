"""Networks of harp_jax in plain PyTorch, with masks computed as in the code of HARP's authors.

Used by `benchmarks.train_step` and `benchmarks.autoattack`; needs `pip install -e '.[benchmarks]'`.
"""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import workload

nn = torch.nn


def _unit(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[Any]:
    """Builds a convolution without bias and its BatchNorm."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _pool() -> Any:
    return nn.MaxPool2d(2)


def cnn() -> Any:
    """Builds `harp_jax.models.convnet.cnn`, for 28x28x1 images."""
    body = []
    for inputs, outputs in ((1, 16), (16, 32), (32, 64)):
        body += [*_unit(inputs, outputs), nn.ReLU(), _pool()]
    head = [nn.Flatten(), nn.Linear(64 * 3 * 3, 128), nn.ReLU()]
    return nn.Sequential(*body, *head, nn.Linear(128, workload.CLASSES))


def vgg16_bn() -> Any:
    """Builds `harp_jax.models.vgg.vgg16_bn`, for 32x32x3 images."""
    body: list[Any] = []
    inputs = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            body += [*_unit(inputs, width), nn.ReLU()]
            inputs = width
        body.append(_pool())
    body.pop()  # there is no pooling after the last block
    head: list[Any] = [nn.Flatten()]
    for inputs, outputs in ((512 * 2 * 2, 256), (256, 256)):
        head += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*body, *head, nn.Linear(256, workload.CLASSES))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus the identity, or a 1x1 projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        first, second = _unit(inputs, outputs, stride=stride), _unit(outputs, outputs)
        self.main = nn.Sequential(*first, nn.ReLU(), *second)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*_unit(inputs, outputs, size=1, stride=stride))

    def forward(self, x: Any) -> Any:
        """Computes feature maps, NCHW."""
        return nn.functional.relu(self.main(x) + self.shortcut(x))


def resnet18() -> Any:
    """Builds ResNet-18 for CIFAR (32x32x3): a 3x3 stem and no pooling before the blocks."""
    body, inputs = [*_unit(3, 64), nn.ReLU()], 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        body += [BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*body, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, workload.CLASSES))


NETWORKS: dict[str, Callable[[], Any]] = {"cnn": cnn, "vgg16_bn": vgg16_bn, "resnet18": resnet18}


def layers(network: Any) -> list[tuple[Any, Any]]:
    """Returns all convolutions and dense layers with their BatchNorm or None, in order."""
    found: list[tuple[Any, Any]] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.append((module, None))
        elif isinstance(module, nn.BatchNorm2d):
            found[-1] = (found[-1][0], module)
    return found


def load(network: Any, arrays: Sequence[dict[str, np.ndarray]]) -> None:
    """Copies the arrays of a harp_jax network into a PyTorch network.

    Blocks may call their layers in another order than here. So layers are paired by the shape of
    their kernels, and by order only among equal shapes.

    Args:
        network: A network of `NETWORKS`, without masks.
        arrays: Arrays from `jax_step.layer_arrays`.

    Raises:
        ValueError: If the two networks do not have kernels of the same shapes.
    """
    waiting: dict[tuple[int, ...], list[dict[str, np.ndarray]]] = collections.defaultdict(list)
    for leaves in reversed(arrays):
        waiting[leaves["kernel"].shape].append(leaves)
    channels = 0
    for layer, norm in layers(network):
        height_width = layer.weight.shape[2:]
        shape = (*height_width, *layer.weight.shape[1::-1])
        if not waiting[shape]:
            raise ValueError(f"the other network has no further kernel of shape {shape}")
        _copy(layer, norm, waiting[shape].pop(), channels)
        channels = layer.weight.shape[0]
    if any(waiting.values()):
        raise ValueError(
            f"only the other network has kernels of {[s for s in waiting if waiting[s]]}"
        )


def _copy(layer: Any, norm: Any, leaves: dict[str, np.ndarray], channels: int) -> None:
    """Copies a layer's arrays; `channels` is the number of channels of the layer before it."""
    kernel = leaves["kernel"]
    if kernel.ndim == 2:
        # Square feature maps are flattened as H, W, C in JAX and as C, H, W here.
        side = math.isqrt(kernel.shape[0] // channels)
        kernel = kernel.reshape(side, side, channels, -1)
    targets = {"kernel": layer.weight, "bias": layer.bias}
    if norm is not None:
        targets |= {"norm_scale": norm.weight, "norm_bias": norm.bias}
        targets |= {"norm_mean": norm.running_mean, "norm_var": norm.running_var}
    leaves = {**leaves, "kernel": kernel.transpose(3, 2, 0, 1)}
    with torch.no_grad():
        for name, array in leaves.items():
            targets[name].copy_(torch.tensor(array).reshape(targets[name].shape))


class SortedMask(torch.autograd.Function):
    """The mask of the largest |scores| by a full sort, with straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, scores: Any, rate: Any) -> Any:
        """Computes the mask of scores (any shape) for a scalar rate in [0, 1]."""
        ctx.save_for_backward(scores)
        dropped = int((1.0 - rate) * scores.numel())
        order = scores.abs().flatten().sort().indices
        mask = torch.ones(scores.numel())
        mask[order[:dropped]] = 0.0
        return mask.view(scores.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Returns the mask's gradient times sign(scores), and its sum for the rate."""
        (scores,), (gradient,) = ctx.saved_tensors, gradients
        return gradient * scores.sign(), gradient.sum()


class Mask(nn.Module):
    """Parametrization that multiplies a kernel with the mask of its scores and rate."""

    def __init__(self, weight: Any):
        super().__init__()
        scores = math.sqrt(6.0 / weight[0].numel()) * weight / weight.abs().max()
        share = (workload.START_RATE - workload.MINIMUM) / (1.0 - workload.MINIMUM)
        self.scores = nn.Parameter(scores.detach())
        self.rate_logit = nn.Parameter(torch.tensor(math.log(share / (1.0 - share))))

    def rate(self) -> Any:
        """Returns the fraction of the weights to keep, a scalar."""
        return torch.sigmoid(self.rate_logit) * (1.0 - workload.MINIMUM) + workload.MINIMUM

    def forward(self, weight: Any) -> Any:
        """Returns the masked kernel."""
        return weight * SortedMask.apply(self.scores, self.rate())


def add_masks(network: Any) -> list[Mask]:
    """Prepares a network for pruning: fixes weights and biases, adds scores and rates.

    Every forward pass reads each kernel once and so computes each mask once.
    """
    masks = []
    for layer, _ in layers(network):
        layer.requires_grad_(False)
        masks.append(Mask(layer.weight))
        nn.utils.parametrize.register_parametrization(layer, "weight", masks[-1])
    return masks


def compression_loss(masks: Sequence[Mask]) -> Any:
    """Computes L_hw: the excess of the kept fraction over the target, relative to the target."""
    sizes = [mask.scores.numel() for mask in masks]
    rates = torch.stack([mask.rate() for mask in masks])
    share = (rates * torch.tensor(sizes)).sum() / sum(sizes)
    return (share / workload.TARGET - 1.0).clamp(min=0.0)
