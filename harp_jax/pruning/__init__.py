"""The pruning core of HARP: rates, scores, masks, budgets. Pure functions on arrays and trees.

It exports what pruning in a training loop of your own needs; `docs/examples/own_loop.py` is such a
loop. `attacks`, `methods`, `models` and the rooms above them may import this one.
"""

from harp_jax.pruning.budget import kept_total, settle, shift_to_budget
from harp_jax.pruning.compression import (
    add_compression_gradient,
    compression_loss,
    stepwise_gamma,
)
from harp_jax.pruning.layers import bake, leaves_by_path, tree_of_leaves
from harp_jax.pruning.masks import channel_mask, weight_mask
from harp_jax.pruning.rates import logit_from_rate, rate_from_logit
from harp_jax.pruning.schemes import Scheme, scheme
from harp_jax.pruning.scores import initial_scores
from harp_jax.pruning.sparsity import layer_sparsity

__all__ = [
    "Scheme",
    "add_compression_gradient",
    "bake",
    "channel_mask",
    "compression_loss",
    "initial_scores",
    "kept_total",
    "layer_sparsity",
    "leaves_by_path",
    "logit_from_rate",
    "rate_from_logit",
    "scheme",
    "settle",
    "shift_to_budget",
    "stepwise_gamma",
    "tree_of_leaves",
    "weight_mask",
]
