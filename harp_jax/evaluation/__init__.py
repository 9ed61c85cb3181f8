"""Measures robust accuracy: of any function in one call, or of the networks of a run.

`evaluate` attacks a function from images to logits. It and the evaluation of a run are built on
`PackedAttack`, which attacks a whole split. `checks` warns of numbers that may be too good.
Nothing here knows a configuration or a workdir. `training` and the rooms above it may import this
one.
"""

from harp_jax.evaluation.checks import CURVE, warnings
from harp_jax.evaluation.packed import Outcome, PackedAttack
from harp_jax.evaluation.progress import ROBUST
from harp_jax.evaluation.standalone import Result, evaluate

__all__ = ["CURVE", "ROBUST", "Outcome", "PackedAttack", "Result", "evaluate", "warnings"]
