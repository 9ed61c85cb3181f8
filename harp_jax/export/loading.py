"""Loads a trained network as a function."""

from typing import Any

import jax
from etils import epath

from harp_jax import checkpoint, models
from harp_jax.pruning.layers import bake
from harp_jax.types import LogitsFn


def load(path: epath.PathLike, model: str | None = None) -> tuple[LogitsFn, dict[str, Any]]:
    """Loads the network of a workdir, or of a complete stage in it.

    Args:
        path: A path that `harp_jax.checkpoint.load` takes; a workdir means its last complete stage.
        model: The 'module:function' that makes a network of your own. You have to give it, because
            a checkpoint must not decide what is imported and called.

    Returns:
        (logits_fn, metadata): a compiled function from NHWC images in [0, 1] to logits, with the
        masks applied, and the checkpoint's metadata ('model', 'num_classes', 'image_shape',
        'stage', ...). It normalises and computes as in training, in the metadata's 'compute_dtype';
        without these metadata it computes in float32 and does not normalise.

    Raises:
        CheckpointError: If there is no checkpoint, its stage is not complete, or its network has
            another name than `model`.
    """
    variables = checkpoint.load(path)
    metadata = variables.pop("metadata")
    if "model" not in metadata:
        raise checkpoint.CheckpointError(
            f"{checkpoint.find(path)}: does not say which network it is of; allowed are complete"
            " stages, and any checkpoint with harp_jax.checkpoint.load"
        )
    name = metadata["model"]
    if name not in models.MODELS and name != model:
        raise checkpoint.CheckpointError(
            f"{checkpoint.find(path)}: is of the network {name!r}, model={model!r}; allowed is"
            f" model={name!r}, if you trust that module"
        )
    network = models.create(
        name,
        metadata["num_classes"],
        normalization=metadata.get("normalization"),
        dtype=metadata.get("compute_dtype", "float32"),
    )
    return jax.jit(models.logits_fn(network, jax.jit(bake)(variables))), metadata
