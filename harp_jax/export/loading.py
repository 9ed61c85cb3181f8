"""A trained network, ready to call."""

from typing import Any

import jax
from etils import epath

from harp_jax import checkpoint, models
from harp_jax.pruning.layers import bake
from harp_jax.types import LogitsFn


def load(path: epath.PathLike, model: str | None = None) -> tuple[LogitsFn, dict[str, Any]]:
    """Loads the network of a workdir, or of a complete stage in it.

    Args:
        path: As for `harp_jax.checkpoint.load`: a workdir means its last complete stage.
        model: For a network of a user's own, the 'module:function' that makes it. It has to be
            given, since a checkpoint alone must not say what is imported and called.

    Returns:
        (logits_fn, metadata): a compiled function from NHWC images in [0, 1] to logits with the
        masks already applied, and the checkpoint's metadata ('model', 'num_classes', 'image_shape',
        'stage', ...). It normalises and computes as in training, in the metadata's 'compute_dtype';
        in float32 and without normalisation where the metadata do not say.

    Raises:
        CheckpointError: If there is no checkpoint, it is of a stage that is not complete, or of a
            network of another name.
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
