"""Takes a trained network out of its run: as a function, as a smaller network, or as a file.

`write(workdir, file, format)` and `python -m harp_jax.export` write files for this package
('sparse', 'dense') and for everybody else ('dense', 'stablehlo', 'onnx', 'torch'); a file each,
and a module each, NAME_file.py. `interop`, `run` and the rooms above them may import this one.
"""

from harp_jax.export.compact import Compact, compact
from harp_jax.export.compact_graph import CompactNetwork, Function, Node
from harp_jax.export.errors import FileError
from harp_jax.export.loading import load
from harp_jax.export.trained import Trained, read
from harp_jax.export.writing import FORMATS, Written, write

__all__ = [
    "FORMATS",
    "Compact",
    "CompactNetwork",
    "FileError",
    "Function",
    "Node",
    "Trained",
    "Written",
    "compact",
    "load",
    "read",
    "write",
]
