"""Every setting of a run: defaults, the parts that they describe, and the checks.

The only room that knows both the fields of a configuration and what they stand for. `run`,
`export`, `report` and `main` may import it; nothing that trains, attacks or prunes does.
"""

from harp_jax.config.defaults import default
from harp_jax.config.sections import Config, ConfigError
from harp_jax.config.validation import check_batches, validate

__all__ = ["Config", "ConfigError", "check_batches", "default", "validate"]
