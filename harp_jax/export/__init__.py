"""Takes a trained network out of its run: as a function to call, or as a smaller network.

`run` and the rooms above it may import this one.
"""

from harp_jax.export.compact import Compact, compact
from harp_jax.export.compact_graph import CompactNetwork, Function, Node
from harp_jax.export.loading import load

__all__ = ["Compact", "CompactNetwork", "Function", "Node", "compact", "load"]
