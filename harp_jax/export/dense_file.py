"""The format 'dense': every array with its masks applied, in safetensors that anyone can read.

Arrays have Flax' names and layouts: 'params/conv1/kernel' is HWIO, 'params/dense1/kernel' is
[in, out], 'batch_stats/norm1/mean' is [channels]. All are float32; with bfloat16 the kernels are
rounded to it.
"""

import ml_dtypes
import numpy as np

from harp_jax.export import container
from harp_jax.export.errors import FileError
from harp_jax.export.trained import Trained, flat, rebuilt

NAME, VERSION = "harp_jax.dense", 1
DTYPES = ("float32", "bfloat16")


def encode(trained: Trained, dtype: str = "float32") -> bytes:
    """Makes the content of a dense file.

    Args:
        trained: The network.
        dtype: Type of the kernels, one of `DTYPES`.

    Returns:
        The content.
    """
    arrays = flat(trained.variables)
    if dtype == "bfloat16":
        for path in filter(_is_kernel, arrays):
            arrays[path] = arrays[path].astype(ml_dtypes.bfloat16)
    metadata = {**trained.metadata, "format": NAME, "version": VERSION, "dtype": dtype}
    return container.encode(arrays, metadata)


def decode(content: bytes, model: str | None = None) -> Trained:
    """Reads the content of a dense file.

    Args:
        content: The whole file.
        model: See `harp_jax.load`.

    Returns:
        The network, in float32.

    Raises:
        FileError: If the file is damaged, or not of a network of this package or `model`.
    """
    arrays, metadata = container.decode(content)
    container.check_format(metadata, NAME, VERSION)
    if any(array.dtype == np.uint8 for array in arrays.values()):
        raise FileError("dtype=uint8: allowed are float32 and bfloat16")
    shapes = {path: array.shape for path, array in arrays.items()}
    return rebuilt(
        shapes,
        lambda: {path: array.astype(np.float32) for path, array in arrays.items()},
        metadata,
        model,
    )


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")
