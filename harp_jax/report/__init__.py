"""The report: the page of a run with its tables and figures, and one that compares several runs.

`interop`, `run` and the rooms above them may import this one.
"""

from harp_jax.report.comparison import compare
from harp_jax.report.page import write
from harp_jax.workdir import ReportError

__all__ = ["ReportError", "compare", "write"]
