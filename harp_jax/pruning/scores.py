"""Initial scores of connections (weights) or input channels, from pre-trained kernels."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array

from harp_jax.types import Kernel, Scores

Granularity = Literal["weight", "channel"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


def initial_scores(kernel: Kernel, granularity: Granularity = "weight") -> Scores:
    """Computes scores that start as magnitude pruning, on the scale of an initialised layer.

    Weight granularity: S = sqrt(6 / fan_in) * W / max|W|, with fan_in = kernel height * width *
    input channels (HYDRA, Section 4; used by HARP). The mask ranks |S|, so the sign is free.
    Channel granularity: the same scaling of each input channel's L1 norm, with fan_in 1. The
    authors' code reshapes an output-first kernel here and so mixes channels; this reduces over
    the named axes.

    Args:
        kernel: `[height, width, in, out]` or `[in, out]`.
        granularity: 'weight' or 'channel'.

    Returns:
        Scores of the kernel's shape (weight) or `[in]` (channel). An all-zero kernel scores zero.

    Raises:
        ValueError: For another granularity.
    """
    if granularity == "weight":
        return _scaled(kernel, fan_in=kernel.size // kernel.shape[-1])
    if granularity == "channel":
        return channel_scores([kernel], kernel.shape[-2])
    raise ValueError(f"granularity={granularity!r}: allowed are {', '.join(GRANULARITIES)}")


def channel_scores(kernels: Sequence[Kernel], channels: int) -> Scores:
    """Computes initial scores of channels from the kernels of all layers that read them.

    Args:
        kernels: `[height, width, in, out]` or `[in, out]`. `in` is `channels` or, for flattened
            feature maps, a multiple of it, with channels the fastest to change.
        channels: Number of channels.

    Returns:
        `[channels]`: sqrt(6) * N / max(N), N being the L1 norm of all entries that read a channel.
    """
    norms = [jnp.abs(k).reshape(-1, channels, k.shape[-1]).sum((0, 2)) for k in kernels]
    return _scaled(sum(norms[1:], start=norms[0]), fan_in=1)


def _scaled(raw: Array, fan_in: int) -> Scores:
    largest = jnp.abs(raw).max()
    return jnp.sqrt(6.0 / fan_in) * raw / jnp.where(largest > 0, largest, 1.0)
