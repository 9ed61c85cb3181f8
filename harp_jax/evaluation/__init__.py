"""Robust accuracy that can be relied on: of any function in one call, or of a run's stages.

`evaluate` attacks a function from images to logits; `PackedAttack` is what it and the evaluation of
a run are made of. `checks` says what to doubt of a number. May be imported by `training` and what
lies above it; knows no configuration and no workdir.
"""

from harp_jax.evaluation.checks import CURVE, warnings
from harp_jax.evaluation.packed import Outcome, PackedAttack
from harp_jax.evaluation.progress import ROBUST
from harp_jax.evaluation.standalone import Result, evaluate

__all__ = ["CURVE", "ROBUST", "Outcome", "PackedAttack", "Result", "evaluate", "warnings"]
