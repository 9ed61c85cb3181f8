"""Operations that are fast on every platform, XLA's CPU backend included."""

from harp_jax.ops.conv import conv_general_dilated
from harp_jax.ops.pool import max_pool

__all__ = ["conv_general_dilated", "max_pool"]
