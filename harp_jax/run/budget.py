"""Brings a pruned network's rates onto its budget at the end of the prune stage."""

from typing import Any

import jax

from harp_jax.config.sections import Config, ConfigError, minimum_rate
from harp_jax.pruning import compression
from harp_jax.pruning.budget import kept_total, settle, shift_to_budget
from harp_jax.pruning.costs import Cost
from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.types import Variables

# Below it, at the budget's end, most layers' rates come down to less than a third.
LARGE_SHIFT = -1.2


def fit(
    config: Config, variables: Variables, cost: Cost, epoch: int | None
) -> tuple[Any, list[str]]:
    """Computes rate logits whose masks keep at most what the target allows, in any program.

    Args:
        config: A valid configuration.
        variables: Variables of the chosen network, with 'rates'.
        cost: The cost that the budget limits.
        epoch: Epoch of the network; None if nothing was trained.

    Returns:
        The tree of logits, and a note for readers if they were shifted.

    Raises:
        ConfigError: If the network is above the target and prune.above_target is 'error'.
    """
    prune, minimum = config.prune, minimum_rate(config)
    share, logits = cost.target_share(prune.target), leaves_by_path(variables["rates"])
    before = kept_total(logits, minimum, cost)
    shifted, shift = shift_to_budget(logits, minimum, cost, share)
    settled = settle(shifted, minimum, cost)
    fitting = tree_of_leaves({path: jax.device_get(logit) for path, logit in settled.items()})
    if shift == 0.0:
        return fitting, []
    text = (
        f"prune: epoch {epoch} kept {before} of {cost.total} {cost.unit}"
        f" ({before / cost.total:.4%}), above prune.target={prune.target:g}"
    )
    if cost.unit != "weights":
        text += f", which allows {share:.4%}"
    rates = {path: rate_from_logit(logit, minimum) for path, logit in logits.items()}
    reached = compression.target_reached(compression.compression_loss(rates, cost, share))
    if prune.above_target == "error" and not reached:
        raise ConfigError(
            f"{text}; allowed are more prune.epochs, a larger prune.gamma0,"
            " or prune.above_target='shift'"
        )
    after = kept_total(settled, minimum, cost)
    note = f"{text}; all rate logits were shifted by {shift:.4g}, which keeps {after}"
    if shift < LARGE_SHIFT:
        note += (
            "; so large a shift leaves little of what was learned:"
            " prune longer, or with a larger prune.gamma0"
        )
    return fitting, [note]
