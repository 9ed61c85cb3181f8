"""A trained network out of its run: ready to call, or as the smaller network that it is."""

from harp_jax.export.compact import compact
from harp_jax.export.loading import load

__all__ = ["compact", "load"]
