"""Brings networks in from checkpoints in PyTorch's formats, without PyTorch.

`import_checkpoint` and `python -m harp_jax.interop import` write a workdir that runs start from;
`read` only reads. Nothing in a file is executed. The names of the arrays are those of the export,
`harp_jax.export.torch_names`. `main` may import this one.
"""

from harp_jax.interop.reading import Imported, inspect, read
from harp_jax.interop.report import Report
from harp_jax.interop.writing import import_checkpoint

__all__ = ["Imported", "Report", "import_checkpoint", "inspect", "read"]
