"""Networks of harp_jax in plain PyTorch, with masks computed as in the code of HARP's authors.

Their layers have the names of the format 'torch', see `harp_jax.export.torch_names`. Used by
`benchmarks.train_step`, `benchmarks.autoattack` and `benchmarks.formats`; needs
`pip install -e '.[benchmarks]'`.
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


class ConvNet(nn.Module):
    """`harp_jax.models.convnet.cnn`, for 28x28x1 images."""

    def __init__(self) -> None:
        super().__init__()
        for place, (inputs, outputs) in enumerate(((1, 16), (16, 32), (32, 64)), 1):
            convolution, norm = _unit(inputs, outputs)
            self.add_module(f"conv{place}", convolution)
            self.add_module(f"bn{place}", norm)
        self.fc1, self.fc2 = nn.Linear(64 * 3 * 3, 128), nn.Linear(128, workload.CLASSES)

    def forward(self, x: Any) -> Any:
        """Computes logits of images, NCHW."""
        for convolution, norm in (
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
        ):
            x = nn.functional.max_pool2d(nn.functional.relu(norm(convolution(x))), 2)
        return self.fc2(nn.functional.relu(self.fc1(x.flatten(1))))


class VGG(nn.Module):
    """`harp_jax.models.vgg.vgg16_bn`, for 32x32x3 images."""

    def __init__(self) -> None:
        super().__init__()
        body: list[Any] = []
        inputs = 3
        for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(convolutions):
                body += [*_unit(inputs, width), nn.ReLU()]
                inputs = width
            body.append(nn.MaxPool2d(2))
        body.pop()  # there is no pooling after the last block
        head: list[Any] = []
        for inputs, outputs in ((512 * 2 * 2, 256), (256, 256)):
            head += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.features = nn.Sequential(*body)
        self.classifier = nn.Sequential(*head, nn.Linear(256, workload.CLASSES))

    def forward(self, x: Any) -> Any:
        """Computes logits of images, NCHW."""
        return self.classifier(self.features(x).flatten(1))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus the identity, or a 1x1 projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _unit(inputs, outputs, stride=stride)
        self.conv2, self.bn2 = _unit(outputs, outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(*_unit(inputs, outputs, size=1, stride=stride))

    def forward(self, x: Any) -> Any:
        """Computes feature maps, NCHW."""
        y = nn.functional.relu(self.bn1(self.conv1(x)))
        return nn.functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 for CIFAR (32x32x3): a 3x3 stem and no pooling before the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _unit(3, 64)
        stages, inputs = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks = BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1)
            stages.append(nn.Sequential(*blocks))
            inputs = outputs
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.linear = nn.Linear(512, workload.CLASSES)

    def forward(self, x: Any) -> Any:
        """Computes logits of images, NCHW."""
        x = nn.functional.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, plus the input or its 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Any) -> Any:
        """Computes feature maps, NCHW."""
        active = nn.functional.relu(self.norm1(x))
        y = self.conv2(nn.functional.relu(self.norm2(self.conv1(active))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """`harp_jax.models.wrn.wrn_28_4`, for 32x32x3 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        blocks, inputs = [], 16
        for stage, outputs in enumerate((64, 128, 256)):
            for block in range(4):
                blocks.append(WideBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(inputs)
        self.linear = nn.Linear(inputs, workload.CLASSES)

    def forward(self, x: Any) -> Any:
        """Computes logits of images, NCHW."""
        x = nn.functional.relu(self.norm(self.blocks(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], Any]] = {
    "cnn": ConvNet,
    "vgg16_bn": VGG,
    "resnet18": ResNet18,
    "wrn_28_4": WideResNet,
}


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
        mask = torch.ones(scores.numel(), device=scores.device)
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
    share = (rates * torch.tensor(sizes, device=rates.device)).sum() / sum(sizes)
    return (share / workload.TARGET - 1.0).clamp(min=0.0)
