"""Every setting of a run: its default, its checks, and the objects that it describes.

This is the only room that turns the fields of a configuration into attacks, losses and methods.
`export`, `report` and the rooms above them may import this one.
"""

from harp_jax.config.defaults import Config, default
from harp_jax.config.packaged import load
from harp_jax.config.sections import ConfigError
from harp_jax.config.validation import check_batches, validate

__all__ = ["Config", "ConfigError", "check_batches", "default", "load", "validate"]
