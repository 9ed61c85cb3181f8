"""Loads a trained network as a function, from a run or from a file."""

from typing import Any

import jax
from etils import epath

from harp_jax import checkpoint, models
from harp_jax.export import dense_file, sparse_file, stablehlo_file, trained
from harp_jax.export.container import format_of
from harp_jax.export.errors import FileError
from harp_jax.export.images import checked
from harp_jax.pruning.layers import bake
from harp_jax.types import LogitsFn


def load(path: epath.PathLike, model: str | None = None) -> tuple[LogitsFn, dict[str, Any]]:
    """Loads the network of a workdir, of a complete stage in it, or of an exported file.

    Args:
        path: A path that `harp_jax.checkpoint.load` takes; a workdir means its last complete stage.
            Or a file that `harp_jax.export.write` made as 'sparse', 'dense' or 'stablehlo'.
        model: Name of the network. You have to give the 'module:function' that makes a network of
            your own, because a checkpoint must not decide what is imported and called. Networks of
            the package and 'stablehlo' files need none.

    Returns:
        (logits_fn, metadata): a compiled function from NHWC images in [0, 1] to logits, with the
        masks applied, and the checkpoint's or file's metadata ('model', 'num_classes',
        'image_shape', 'stage', ...). It normalises and computes as in training, in the metadata's
        'compute_dtype'; without these metadata it computes in float32 and does not normalise. Of a
        'sparse' file on a CPU it is the fastest form, see `harp_jax.models.sparse.fastest`; there
        fewer than 16 NumPy images run outside of JAX where that is faster, with NumPy logits, and
        there are first derivatives in reverse mode alone. A 'stablehlo' file has none at all. All
        raise a ValueError in one line for images that are no floating-point array, as bytes are
        none, or of a size that the network does not take; their range is not looked at.

    Raises:
        CheckpointError: If there is no checkpoint, its stage is not complete, or its network has
            another name than `model`.
        FileError: If a file is none of these, is damaged, or its network has another name than
            `model`.
    """
    where = checkpoint.absolute(path)
    if where.is_file():
        try:
            return _load_file(where, model)
        except FileError as error:
            raise FileError(f"{where}: {error}") from error
    variables = checkpoint.load(path)
    metadata = variables.pop("metadata")
    network = trained.network_of(metadata, checkpoint.find(path), model)
    logits_fn = models.logits_fn(network, jax.jit(bake)(variables))
    return jax.jit(checked(logits_fn, metadata["image_shape"])), metadata


def _load_file(path: epath.Path, model: str | None) -> tuple[LogitsFn, dict[str, Any]]:
    beside = path.with_name(path.name + stablehlo_file.BESIDE)
    content = path.read_bytes()
    name = format_of(content)
    if name is None and beside.is_file():
        logits_fn, metadata = stablehlo_file.decode(content, beside.read_bytes())
        if model not in (None, metadata.get("model")):
            raise FileError(trained.another_network(metadata.get("model"), model))
        return logits_fn, metadata
    decoders = {each.NAME: each.decode for each in (sparse_file, dense_file)}
    if name not in decoders:
        raise FileError(
            "not a file of the format sparse, dense or stablehlo (which needs FILE.json beside it),"
            " or damaged"
        )
    network = decoders[name](content, model)
    logits_fn = network.sparse_logits_fn if name == sparse_file.NAME else network.logits_fn
    return logits_fn(), network.metadata
