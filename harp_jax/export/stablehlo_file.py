"""The format 'stablehlo': the compiled function's program, as `jax.export` serialises it.

Any process with JAX runs it, without this package:

    jax.export.deserialize(bytearray(content)).call(images)

It takes float32 NHWC images in [0, 1], any number of them, and runs on CPUs, CUDA and TPUs. The
metadata stand beside it, in FILE.json, with 'digest', the SHA-256 of both.
"""

import hashlib
import json
from typing import Any

import jax
import jax.export
import numpy as np

from harp_jax import models
from harp_jax.export import container
from harp_jax.export.errors import FileError
from harp_jax.export.trained import Trained
from harp_jax.types import LogitsFn

NAME, VERSION = "harp_jax.stablehlo", 1
DTYPES = ("float32",)
PLATFORMS = ("cpu", "cuda", "tpu")
BESIDE = ".json"  # what the name of the file with the metadata has at its end


def encode(trained: Trained) -> tuple[bytes, bytes]:
    """Makes the program and its metadata.

    Args:
        trained: The network.

    Returns:
        (program, metadata), the contents of the file and of the one beside it.

    Raises:
        FileError: If the network has no program for every batch size.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *trained.image_shape), np.float32)
    function = jax.jit(models.logits_fn(trained.network, trained.variables))
    try:
        exported = jax.export.export(function, platforms=PLATFORMS)(images)
    except Exception as error:  # a user's network may raise anything
        raise FileError(
            f"format='stablehlo': no program for every batch size ({container.one_line(error)})"
        ) from error
    program = bytes(exported.serialize())
    metadata = {
        **trained.metadata,
        "format": NAME,
        "version": VERSION,
        "platforms": list(PLATFORMS),
    }
    metadata["digest"] = _digest(program, metadata)
    return program, (json.dumps(metadata, indent=2) + "\n").encode()


def decode(program: bytes, beside: bytes) -> tuple[LogitsFn, dict[str, Any]]:
    """Reads a program and its metadata.

    Args:
        program: Content of the file.
        beside: Content of the file beside it.

    Returns:
        (logits_fn, metadata).

    Raises:
        FileError: If one of them is damaged, or they do not belong together.
    """
    try:
        metadata = json.loads(beside)
        container.check_format(metadata, NAME, VERSION)
        digest = _digest(program, metadata)
    except FileError:
        raise
    except (AttributeError, RecursionError, ValueError) as error:
        raise FileError(f"metadata beside it: damaged ({container.one_line(error)})") from error
    if metadata.get("digest") != digest:
        raise FileError("damaged: program and metadata are not what their digest says")
    try:
        exported = jax.export.deserialize(bytearray(program))
    except Exception as error:  # of a version of JAX that cannot read it
        raise FileError(f"no program for this JAX ({container.one_line(error)})") from error
    return jax.jit(exported.call), metadata


def _digest(program: bytes, metadata: dict[str, Any]) -> str:
    covered = {name: value for name, value in sorted(metadata.items()) if name != "digest"}
    return hashlib.sha256(container.as_json(covered).encode() + program).hexdigest()
