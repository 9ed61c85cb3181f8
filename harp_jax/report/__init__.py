"""The report of a run: a page with its tables and figures.

`interop`, `run` and the rooms above them may import this one.
"""

from harp_jax.report.page import write
from harp_jax.workdir import ReportError

__all__ = ["ReportError", "write"]
