"""Writes the Python code that loads the network of a run."""

import json
from collections.abc import Sequence

from harp_jax.workdir import files

_CODE = """\
import harp_jax
import jax.numpy as jnp

logits_fn, metadata = harp_jax.load({arguments})
images = jnp.zeros((1, *metadata["image_shape"]))  # your images: NHWC, in [0, 1]
classes = logits_fn(images).argmax(-1)
"""


def code(model: str, complete: Sequence[str], has_file: bool) -> dict[str, str]:
    """Writes code that runs in the run's folder.

    Args:
        model: Name of the run's network; one of the user's own has to be given to the loader.
        complete: Stages with a network, in their order.
        has_file: Whether network.safetensors is there.

    Returns:
        Code for 'file' and for 'checkpoint', the network of the last stage, as far as they exist.
    """
    own = f", model={json.dumps(model)}" if ":" in model else ""
    paths = {"file": files.NETWORK} if has_file else {}
    paths |= {"checkpoint": complete[-1]} if complete else {}
    return {
        name: _CODE.format(arguments=f"{json.dumps(path)}{own}") for name, path in paths.items()
    }
