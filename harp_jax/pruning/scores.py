"""Initial scores of connections (weights) or input channels, from pre-trained kernels."""

from typing import Literal, get_args

import jax.numpy as jnp

from harp_jax.types import Kernel, Scores

Granularity = Literal["weight", "channel"]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


def initial_scores(kernel: Kernel, granularity: Granularity = "weight") -> Scores:
    """Scores that start pruning as magnitude pruning, on the scale of an initialised layer.

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
        ValueError: for another granularity.
    """
    if granularity == "weight":
        raw, fan_in = kernel, kernel.size // kernel.shape[-1]
    elif granularity == "channel":
        other_axes = tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2)
        raw, fan_in = jnp.abs(kernel).sum(other_axes), 1
    else:
        raise ValueError(f"granularity={granularity!r}: allowed are {', '.join(GRANULARITIES)}")
    largest = jnp.abs(raw).max()
    return jnp.sqrt(6.0 / fan_in) * raw / jnp.where(largest > 0, largest, 1.0)
