"""The report of a run: a page with its tables and figures.

`interop`, `run` and the rooms above them may import this one.
"""

from harp_jax.report.page import ReportError, write

__all__ = ["ReportError", "write"]
