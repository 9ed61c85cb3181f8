"""Robust accuracy that can be relied on: AutoAttack over a split, and what to doubt of it."""

from harp_jax.robustness.checks import CURVE, warnings
from harp_jax.robustness.packed import Outcome, PackedAutoAttack
from harp_jax.robustness.progress import ROBUST

__all__ = ["CURVE", "ROBUST", "Outcome", "PackedAutoAttack", "warnings"]
