"""The page that a run ends in, with its figures."""

from harp_jax.report.page import write

__all__ = ["write"]
