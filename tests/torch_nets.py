"""Plain PyTorch networks with the keys of the authors', RobustBench's and torchvision's.

With `Masks`, every convolution and dense layer has popup_scores and, for HARP, k_score, and masks
its weight as the code of the HARP and HYDRA authors does.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class Masks:
    """How the layers of a network are made and masked.

    Attributes:
        minimum: HARP's smallest rate; None for HYDRA or dense layers.
        rate: HYDRA's rate; None for HARP or dense layers.
        channels: Whether inputs are kept or removed as a whole.
    """

    def __init__(self, minimum=None, rate=None, channels=False):
        self.minimum, self.rate, self.channels = minimum, rate, channels

    def __call__(self, layer):
        if self.minimum is None and self.rate is None:
            return layer
        shape = layer.weight.shape
        if self.channels:
            shape = (1, shape[1], *(1 for _ in shape[2:]))
        layer.popup_scores = nn.Parameter(torch.randn(shape))
        if self.minimum is not None:
            layer.k_score = nn.Parameter(torch.randn(()) * 2)
        layer.register_forward_pre_hook(self.mask)
        layer.dense = None
        return layer

    def mask(self, layer, inputs):
        """Masks the weight before the layer computes; afterwards `mask_of` still knows the mask."""
        if layer.dense is None:
            layer.dense = layer.weight.data.clone()
        layer.weight.data = layer.dense * self.of(layer)

    def of(self, layer):
        """The mask of a layer."""
        magnitudes = layer.popup_scores.detach().abs()
        rate = self.rate
        if self.minimum is not None:
            rate = torch.sigmoid(layer.k_score.detach()) * (1 - self.minimum) + self.minimum
        if self.channels:
            count = int(torch.round(rate * magnitudes.numel()))
            kept = magnitudes.flatten().topk(count).indices
            return torch.zeros(magnitudes.numel()).index_fill(0, kept, 1).reshape(magnitudes.shape)
        removed = int((1 - rate) * magnitudes.numel())
        order = magnitudes.flatten().sort(stable=True).indices[:removed]
        return torch.ones(magnitudes.numel()).index_fill(0, order, 0).reshape(magnitudes.shape)


DENSE = Masks()


def conv(masks, inputs, outputs, size=3, stride=1):
    return masks(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False))


class Vgg(nn.Module):
    def __init__(self, masks=DENSE, classes=10):
        super().__init__()
        body, inputs = [], 3
        for block, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
            body += [nn.MaxPool2d(2)] if block else []
            for _ in range(count):
                body += [conv(masks, inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*body)
        head = [masks(nn.Linear(a, b)) for a, b in ((2048, 256), (256, 256), (256, classes))]
        self.classifier = nn.Sequential(head[0], nn.ReLU(), head[1], nn.ReLU(), head[2])

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class Block(nn.Module):
    """A block of ResNet18, or with `order` in front one of a pre-activation network."""

    def __init__(self, masks, inputs, outputs, stride, kind):
        super().__init__()
        self.kind = kind
        self.bn1 = nn.BatchNorm2d(inputs if kind else outputs)
        self.conv1 = conv(masks, inputs, outputs, stride=stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(masks, outputs, outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            norm = [] if kind else [nn.BatchNorm2d(outputs)]
            self.shortcut = nn.Sequential(conv(masks, inputs, outputs, 1, stride), *norm)

    def forward(self, x):
        if not self.kind:
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + self.shortcut(x))
        active = F.relu(self.bn1(x))
        side = active if self.kind == "activated" and len(self.shortcut) else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + self.shortcut(side)


class ResNet18(nn.Module):
    """ResNet18, and with `kind` 'plain' or 'activated' the pre-activation networks."""

    def __init__(self, masks=DENSE, classes=10, kind="", normalized=False):
        super().__init__()
        self.kind, inputs = kind, 64
        if normalized:
            mean, sigma = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.25, 0.2, 0.3])
            self.register_buffer("mu", mean.reshape(1, 3, 1, 1))
            self.register_buffer("sigma", sigma.reshape(1, 3, 1, 1))
        self.normalized = normalized
        self.conv1 = conv(masks, 3, 64)
        if not kind:
            self.bn1 = nn.BatchNorm2d(64)
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            first = Block(masks, inputs, width, 1 if stage == 1 else 2, kind)
            blocks = nn.Sequential(first, Block(masks, width, width, 1, kind))
            setattr(self, f"layer{stage}", blocks)
            inputs = width
        if kind == "activated":
            self.bn = nn.BatchNorm2d(512)
        self.linear = masks(nn.Linear(512, classes))

    def forward(self, x):
        if self.normalized:
            x = (x - self.mu) / self.sigma
        x = self.conv1(x)
        x = x if self.kind else F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = F.relu(self.bn(x)) if self.kind == "activated" else x
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WideBlock(nn.Module):
    def __init__(self, masks, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = conv(masks, inputs, outputs, stride=stride)
        self.conv2 = conv(masks, outputs, outputs)
        if inputs != outputs:
            self.convShortcut = conv(masks, inputs, outputs, 1, stride)

    def forward(self, x):
        active = F.relu(self.bn1(x))
        side = self.convShortcut(active) if hasattr(self, "convShortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + side


class WideStage(nn.Module):
    def __init__(self, masks, inputs, outputs, stride, count):
        super().__init__()
        blocks = [WideBlock(masks, inputs, outputs, stride)]
        blocks += [WideBlock(masks, outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class Wide(nn.Module):
    def __init__(self, masks=DENSE, classes=10, depth=28, widen=4, sub_block=False):
        super().__init__()
        count, inputs = (depth - 4) // 6, 16
        self.conv1 = conv(masks, 3, 16)
        for stage, width in enumerate((16 * widen, 32 * widen, 64 * widen), start=1):
            step = 1 if stage == 1 else 2
            setattr(self, f"block{stage}", WideStage(masks, inputs, width, step, count))
            if sub_block and stage == 1:
                self.sub_block1 = WideStage(masks, inputs, width, step, count)
            inputs = width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = masks(nn.Linear(inputs, classes))

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1).flatten(1))


class Bottleneck(nn.Module):
    def __init__(self, masks, inputs, width, stride):
        super().__init__()
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        for number, size in enumerate(sizes, start=1):
            setattr(self, f"conv{number}", conv(masks, *size))
            setattr(self, f"bn{number}", nn.BatchNorm2d(size[1]))
        if stride != 1 or inputs != 4 * width:
            side = conv(masks, inputs, 4 * width, 1, stride)
            self.downsample = nn.Sequential(side, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class ResNet50(nn.Module):
    def __init__(self, masks=DENSE, classes=1000):
        super().__init__()
        self.conv1, self.bn1, inputs = conv(masks, 3, 64, 7, 2), nn.BatchNorm2d(64), 64
        for stage, count in enumerate((3, 4, 6, 3), start=1):
            width = 32 * 2**stage
            blocks = [Bottleneck(masks, inputs, width, 1 if stage == 1 else 2)]
            blocks += [Bottleneck(masks, 4 * width, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = 4 * width
        self.fc = masks(nn.Linear(inputs, classes))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Small(nn.Module):
    """harp_jax's `tiny` for 8x8 grey images."""

    def __init__(self, masks=DENSE, classes=10):
        super().__init__()
        self.conv1, self.bn1 = conv(masks, 1, 8), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv(masks, 8, 16), nn.BatchNorm2d(16)
        self.fc1, self.fc2 = masks(nn.Linear(64, 32)), masks(nn.Linear(32, classes))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def made(network, masks=DENSE, seed=0):
    """The network in inference mode, with BatchNorm as after training and logits of the size of 1.

    The weight of every layer keeps its input's variance, so that no layer's error is hidden.
    """
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            pruned = hasattr(module, "popup_scores")
            kept = masks.of(module).mean().item() if pruned else 1.0
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (kept * module.weight[0].numel())))
    return network.eval()


def masks_of(network, masks):
    """The mask of every pruned layer, by its name."""
    return {
        name: masks.of(layer).numpy()
        for name, layer in network.named_modules()
        if hasattr(layer, "popup_scores")
    }


def logits(network, images):
    """Logits of NHWC images, as NumPy."""
    with torch.no_grad():
        return network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
