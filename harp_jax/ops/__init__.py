"""Convolution and max-pooling that are fast on every platform, XLA's CPU backend included.

Pure functions of arrays, in place of those of `jax.lax` and Flax. The networks call them. `data`,
`parallel`, `pruning`, `workdir` and the rooms above them may import this one.
"""

from harp_jax.ops.conv import conv_general_dilated
from harp_jax.ops.order import computed_once
from harp_jax.ops.pool import max_pool

__all__ = ["computed_once", "conv_general_dilated", "max_pool"]
