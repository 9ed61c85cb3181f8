"""HARP, Holistic Adversarially Robust Pruning (Zhao & Wressnegger, ICLR 2023), in JAX and Flax."""

import importlib.metadata

from harp_jax import export, interop
from harp_jax.export import load

__version__ = importlib.metadata.version("harp_jax")
__all__ = ["__version__", "export", "interop", "load"]
