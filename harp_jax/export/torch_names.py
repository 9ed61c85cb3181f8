"""The names of the authors' PyTorch networks, layer by layer, and their order of axes.

Those of vgg16_bn and resnet18 are also AdversarialPruningBenchmark's and (resnet18) RobustBench's,
those of the wide and pre-activation networks RobustBench's, those of resnet50 torchvision's. The
export writes with this table and `harp_jax.interop` reads with it.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np

from harp_jax.export.errors import FileError
from harp_jax.export.trained import Trained, flat, tree
from harp_jax.models.bottleneck import BottleneckResNet
from harp_jax.models.convnet import ConvNet
from harp_jax.models.preact import PreActResNet
from harp_jax.models.resnet import ResNet
from harp_jax.models.vgg import POOL, VGG
from harp_jax.models.wrn import WideResNet

_TENSORS = {
    "params": {"kernel": "weight", "scale": "weight", "bias": "bias"},
    "batch_stats": {"mean": "running_mean", "var": "running_var"},
}
COUNTER = "num_batches_tracked"  # of every BatchNorm; nothing of ours stands behind it


def state_dict(trained: Trained) -> dict[str, np.ndarray]:
    """Returns the arrays of a network by PyTorch's names, in PyTorch's order of axes.

    Args:
        trained: A network of `harp_jax.models.MODELS`.

    Returns:
        Float32 arrays; weights OIHW or [out, in]. Every BatchNorm has 'num_batches_tracked', int64.

    Raises:
        FileError: For a network of another kind.
    """
    found = {}
    for path, array in flat(trained.variables).items():
        name = _name(trained.network, path)
        found[name] = np.ascontiguousarray(_turned(trained, path, array))
        if path.endswith("/var"):
            found[f"{name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return found


def variables(trained: Trained, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the variables that PyTorch's arrays stand for; the inverse of `state_dict`.

    Args:
        trained: The network, whose variables give the paths and shapes.
        arrays: Arrays by PyTorch's names.
    """
    found = {}
    for path, array in flat(trained.variables).items():
        tensor = turned_back(trained, path, arrays[_name(trained.network, path)])
        found[path] = tensor.reshape(array.shape)
    return tree(found)


def shapes(trained: Trained) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns what a PyTorch checkpoint of a network holds, without any counter.

    Args:
        trained: The network, whose variables give the paths and shapes.

    Returns:
        (path, shape in PyTorch's order of axes) of every array, by PyTorch's name.

    Raises:
        FileError: For a network of another kind.
    """
    orders = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        _name(trained.network, path): (path, tuple(array.shape[i] for i in orders[array.ndim]))
        for path, array in flat(trained.variables).items()
    }


def turned_back(trained: Trained, path: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor in Flax' order of axes.

    Args:
        trained: The network, whose variables give the shapes.
        path: Path of the array, 'params/conv1/kernel'.
        tensor: OIHW, [out, in] or [channels]; also [1, in], scores of a layer's inputs.

    Returns:
        HWIO, [in, out] or [channels].
    """
    if tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)
    if tensor.ndim == 2:
        outputs, inputs = tensor.shape
        pixels = _pixels(trained, path)
        return tensor.reshape(outputs, -1, pixels).transpose(2, 1, 0).reshape(inputs, outputs)
    return tensor


def _turned(trained: Trained, path: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 2:  # features flattened as H, W, C here, as C, H, W there
        inputs, outputs = array.shape
        pixels = _pixels(trained, path)
        return array.reshape(pixels, -1, outputs).transpose(2, 1, 0).reshape(outputs, inputs)
    return array


def _pixels(trained: Trained, path: str) -> int:
    """Returns how many pixels a dense layer reads, flattened; 1 where it reads no feature maps."""
    if path != "params/dense1/kernel" or not isinstance(trained.network, ConvNet | VGG):
        return 1
    params = trained.variables["params"]
    last = max(
        (n for n in params if n.startswith("conv")), key=lambda n: int(n.removeprefix("conv"))
    )
    return len(params["dense1"]["kernel"]) // params[last]["kernel"].shape[-1]


def _name(network: nn.Module, path: str) -> str:
    if type(network) not in _LAYERS:
        kinds = ", ".join(kind.__name__ for kind in _LAYERS)
        raise FileError(
            f"format='torch': {type(network).__name__} has no twin in PyTorch; allowed are {kinds}"
        )
    collection, *layer, leaf = path.split("/")
    return f"{_LAYERS[type(network)](network, '/'.join(layer))}.{_TENSORS[collection][leaf]}"


def _convnet(network: Any, layer: str) -> str:
    del network
    return layer.replace("norm", "bn").replace("dense", "fc")


def _vgg(network: Any, layer: str) -> str:
    kind, number = re.fullmatch(r"(conv|norm|dense)(\d+)", layer).groups()  # pyright: ignore
    if kind == "dense":
        return f"classifier.{2 * (int(number) - 1)}"
    places, place = [], 0  # a convolution comes with BatchNorm and ReLU
    for entry in network.plan:
        places += [] if entry == POOL else [place]
        place += 1 if entry == POOL else 3
    return f"features.{places[int(number) - 1] + (kind == 'norm')}"


def _residual(
    block: str, dense: str, shortcut: tuple[str, str], norm: str = "bn1"
) -> Callable[[Any, str], str]:
    """Makes the names of a residual network.

    Args:
        block: Name of a block, with {stage} from 1 and {block} from 0.
        dense: Name of the last layer.
        shortcut: Names of a block's shortcut and of its BatchNorm.
        norm: Name of the BatchNorm outside of blocks.
    """
    own = {"shortcut": shortcut[0], "shortcut_norm": shortcut[1], "dense1": dense}

    def name(network: Any, layer: str) -> str:
        del network
        *outer, inner = layer.split("/")
        if not outer and inner == "norm1":
            return norm
        inner = own.get(inner, inner.replace("norm", "bn"))
        if not outer:
            return inner
        stage, number = map(int, outer[0].removeprefix("conv").split("_"))
        return f"{block.format(stage=stage - 1, block=number - 1)}.{inner}"

    return name


_LAYERS: dict[type[nn.Module], Callable[[Any, str], str]] = {
    ConvNet: _convnet,
    VGG: _vgg,
    ResNet: _residual("layer{stage}.{block}", "linear", ("shortcut.0", "shortcut.1")),
    PreActResNet: _residual("layer{stage}.{block}", "linear", ("shortcut.0", ""), norm="bn"),
    WideResNet: _residual("block{stage}.layer.{block}", "fc", ("convShortcut", "")),
    BottleneckResNet: _residual("layer{stage}.{block}", "fc", ("downsample.0", "downsample.1")),
}
