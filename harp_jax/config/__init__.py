"""Every setting of a run: defaults, what the sections describe, and the checks."""

from harp_jax.config.defaults import check_batches, default, validate

__all__ = ["check_batches", "default", "validate"]
