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
import jax.numpy as jnp

from harp_jax.export import container
from harp_jax.export.errors import FileError, one_line
from harp_jax.export.images import checked
from harp_jax.export.trained import Trained, for_every_batch
from harp_jax.types import Images, Logits, LogitsFn

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
    exported = for_every_batch(
        trained,
        lambda logits_fn, images: jax.export.export(jax.jit(logits_fn), platforms=PLATFORMS)(
            images
        ),
    )
    program = bytes(exported.serialize())
    metadata = {
        **trained.metadata,
        "format": NAME,
        "version": VERSION,
        "platforms": list(PLATFORMS),
    }
    metadata["digest"] = _digest(program, metadata)
    return program, (json.dumps(metadata, indent=2, allow_nan=False) + "\n").encode()


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
        if not isinstance(metadata, dict):
            raise ValueError("no object of JSON")
        digest = _digest(program, metadata)
    except (RecursionError, ValueError) as error:
        raise FileError(f"metadata beside it: damaged ({one_line(error)})") from error
    container.check_format(metadata, NAME, VERSION)
    if metadata.get("digest") != digest:
        raise FileError("damaged: program and metadata are not what their digest says")
    try:
        exported = jax.export.deserialize(bytearray(program))
        image_shape = exported.in_avals[0].shape[1:]
    except Exception as error:  # of a version of JAX that cannot read it
        raise FileError(f"no program for this JAX ({one_line(error)})") from error

    def logits(images: Images) -> Logits:
        if images.shape[0] == 0:  # which no program of JAX takes
            return jnp.zeros((0, *exported.out_avals[0].shape[1:]))
        return exported.call(images.astype(jnp.float32))

    return jax.jit(checked(logits, image_shape)), metadata


def _digest(program: bytes, metadata: dict[str, Any]) -> str:
    covered = {name: value for name, value in sorted(metadata.items()) if name != "digest"}
    return hashlib.sha256(container.as_json(covered).encode() + program).hexdigest()
