"""The arrays that a network's checkpoint has to hold, and others that may be in it."""

import functools
import re
from typing import NamedTuple

import jax
import numpy as np

from harp_jax import models
from harp_jax.export import torch_names
from harp_jax.export.trained import Trained, shapes

IMAGE_SHAPES = {"cnn": (28, 28, 1), "tiny": (8, 8, 1), "resnet50": (224, 224, 3)}
DEFAULT_SHAPE = (32, 32, 3)
SCORES, RATE = "popup_scores", "k_score"
# Mean and deviation of the images, as networks that normalise them name their buffers.
BUFFERS = (("mu", "sigma"), ("mean", "std"), ("new_mean", "new_std"))

_IGNORED = (
    (r"(.*\.)?num_batches_tracked", "a counter of BatchNorm"),
    (r"n_averaged", "a counter of averaged weights"),
    (r"sub_block1\..*", "RobustBench's wide networks have it and do not use it"),
    (r"model_preact_hl1\..*", "RobustBench's networks have it and do not use it"),
)


class Layout(NamedTuple):
    """A network as its checkpoint sees it.

    Attributes:
        trained: The network; its variables have the shapes and no numbers.
        arrays: (path, shape in PyTorch's order of axes) by PyTorch's name.
        last: Name of the last layer's weight, whose first axis is the classes.
    """

    trained: Trained
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    last: str

    def layers(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns the arrays that can be pruned, by the name of their layer."""
        return {
            name.removesuffix(".weight"): (path, shape)
            for name, (path, shape) in self.arrays.items()
            if path.endswith("/kernel")
        }


@functools.lru_cache(maxsize=64)
def layout(
    model: str, image_shape: tuple[int, int, int], num_classes: int, width: float = 1.0
) -> Layout:
    """Finds the arrays of a network, without computing any.

    Args:
        model: One of `harp_jax.models.MODELS`.
        image_shape: Height, width and channels.
        num_classes: Number of logits, >= 2.
        width: See `harp_jax.models.create`.

    Raises:
        FileError: If the network cannot take such images.
    """
    network = models.create(model, num_classes, width=width)
    made = shapes(network, image_shape)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), made)
    trained = Trained(network, zeros, {"model": model})
    arrays = torch_names.shapes(trained)
    dense = {
        int(found[1]): name
        for name, (path, _) in arrays.items()
        if (found := re.fullmatch(r"params/dense(\d+)/kernel", path))
    }
    return Layout(trained, arrays, dense[max(dense)])


def why_ignored(name: str) -> str | None:
    """Returns why a key of a checkpoint is left out although no network has it; None if it is not.

    Args:
        name: The key, without its prefix.
    """
    return next((why for form, why in _IGNORED if re.fullmatch(form, name)), None)
