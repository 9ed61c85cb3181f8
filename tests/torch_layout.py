"""Reads the arrays in tests/golden and turns PyTorch's layouts into those of Flax."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

FOLDER = pathlib.Path(__file__).parent / "golden"

# The authors' small network -> harp_jax.models.convnet.ConvNet.
CONVNET_LAYERS = {
    "conv1": "conv1",
    "bn1": "norm1",
    "conv2": "conv2",
    "bn2": "norm2",
    "fc1": "dense1",
    "fc2": "dense2",
}
# Height, width and channels of the features that a dense layer sees flattened.
CONVNET_FLATTENED = {"fc1": (4, 4, 32)}
# Values per channel that a BatchNorm layer averages over: batch * height * width.
CONVNET_AVERAGED = {"norm1": 8 * 16 * 16, "norm2": 8 * 8 * 8}

# To stay small, the files hold only every eighth row (output) of fc1 after a step.
STORED_OUTPUTS = {"dense1": slice(None, None, 8)}


def golden(name: str) -> dict[str, np.ndarray]:
    """All arrays of tests/golden/<name>.npz."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose name begins with `prefix/`, without it."""
    prefix += "/"
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }


def images(x: np.ndarray) -> np.ndarray:
    """[..., C, H, W] -> [..., H, W, C]."""
    return np.moveaxis(x, -3, -1)


def kernel(array: np.ndarray, flattened: tuple[int, int, int] | None = None) -> np.ndarray:
    """OIHW -> HWIO, or [out, in] -> [in, out].

    With `flattened` = (height, width, channels) the dense layer's inputs are features that PyTorch
    flattens in the order C, H, W and Flax in the order H, W, C.
    """
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if flattened is None:
        return array.T
    height, width, channels = flattened
    array = array.reshape(-1, channels, height, width)
    return array.transpose(2, 3, 1, 0).reshape(height * width * channels, -1)


def variables(
    arrays: Mapping[str, np.ndarray],
    layers: Mapping[str, str],
    flattened: Mapping[str, tuple[int, int, int]],
) -> dict[str, Any]:
    """Named PyTorch tensors as the collections of a Flax network.

    Args:
        arrays: By '<layer>.<tensor>'.
        layers: Flax' name of each of the layers, with '/' where modules are nested.
        flattened: By layer, see `kernel`.

    Returns:
        Those of params, batch_stats, scores and rates (the logits) that `arrays` holds.
    """
    leaves = {}
    for name, array in arrays.items():
        layer, tensor = name.rsplit(".", 1)
        if tensor in ("weight", "popup_scores") and array.ndim > 1:
            array = kernel(array, flattened.get(layer))
        collection, leaf = {
            "weight": ("params", "scale" if array.ndim == 1 else "kernel"),
            "bias": ("params", "bias"),
            "running_mean": ("batch_stats", "mean"),
            "running_var": ("batch_stats", "var"),
            "popup_scores": ("scores", "kernel"),
            "k_score": ("rates", "kernel"),
        }[tensor]
        leaves[collection, *layers[layer].split("/"), leaf] = np.array(array)
    return unflatten_dict(leaves)


def convnet(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`variables` of the authors' small network."""
    return variables(arrays, CONVNET_LAYERS, CONVNET_FLATTENED)


def stored_outputs(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """What the files hold of a kernel or its scores, momentum or gradient at this path."""
    return array[..., STORED_OUTPUTS.get(path[1], slice(None))] if array.ndim > 1 else array


def biased_variance(
    unbiased: np.ndarray, start: np.ndarray, averaged: int, updates: int
) -> np.ndarray:
    """A running variance of PyTorch as it were if it followed the biased batch variances.

    PyTorch follows the unbiased ones, n / (n - 1) times as large. After u updates with momentum 0.1
    its variance is 0.9**u * start + (a sum of batch variances); only that sum is scaled.
    """
    kept = 0.9**updates * start
    return kept + (unbiased - kept) * (averaged - 1) / averaged
