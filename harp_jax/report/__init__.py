"""The page that a run ends in, with its figures."""

from harp_jax.report.page import ReportError, write

__all__ = ["ReportError", "write"]
