"""Robust accuracy that can be relied on: AutoAttack over a split, and what to doubt of it."""

from harp_jax.evaluation.checks import CURVE, warnings
from harp_jax.evaluation.packed import Outcome, PackedAutoAttack
from harp_jax.evaluation.progress import ROBUST

__all__ = ["CURVE", "ROBUST", "Outcome", "PackedAutoAttack", "warnings"]
