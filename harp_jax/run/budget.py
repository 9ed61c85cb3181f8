"""Brings a pruned network onto its budget at the end of the prune stage."""

from typing import Any

import jax

from harp_jax.config.sections import Config, ConfigError, minimum_rate
from harp_jax.pruning import compression
from harp_jax.pruning.budget import kept_total, settle, shift_to_budget
from harp_jax.pruning.costs import Cost
from harp_jax.pruning.filling import fill, fill_live
from harp_jax.pruning.layers import bake, leaves_by_path, tree_of_leaves
from harp_jax.pruning.live import live_weights
from harp_jax.pruning.rates import rate_from_logit
from harp_jax.pruning.schemes import Scheme
from harp_jax.types import Variables

# Below it, at the budget's end, most layers' rates come down to less than a third.
LARGE_SHIFT = -1.2


def fit(
    config: Config, variables: Variables, scheme: Scheme, epoch: int | None
) -> tuple[dict[str, Any], list[str]]:
    """Brings the masks of a network to what the target allows, at most, in any program.

    Args:
        config: A valid configuration.
        variables: Variables of the chosen network, with 'rates'.
        scheme: The scheme of the network, with the cost that the budget limits.
        epoch: Epoch of the network; None if nothing was trained.

    Returns:
        The variables with new rates, with prune.live and prune.fill new scores too, and notes for
        readers if rates were moved.

    Raises:
        ConfigError: If the network is above the target and prune.above_target is 'error'.
    """
    minimum, cost = minimum_rate(config), scheme.cost
    logits, notes = _down(config, leaves_by_path(variables["rates"]), cost, epoch)
    fitting = {**variables, "rates": tree_of_leaves(logits)}
    if config.prune.fill:
        fitting, more = _up(config, fitting, scheme)
        notes += more
    settled = settle(leaves_by_path(fitting["rates"]), minimum, cost)
    rates = {path: jax.device_get(logit) for path, logit in settled.items()}
    return {**fitting, "rates": tree_of_leaves(rates)}, notes


def _down(
    config: Config, logits: dict[Any, Any], cost: Cost, epoch: int | None
) -> tuple[dict[Any, Any], list[str]]:
    """Shifts rates down if the masks keep more than the target allows."""
    prune, minimum = config.prune, minimum_rate(config)
    share = cost.target_share(prune.target)
    before = kept_total(logits, minimum, cost)
    shifted, shift = shift_to_budget(logits, minimum, cost, share)
    if shift == 0.0:
        return shifted, []
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
    after = kept_total(settle(shifted, minimum, cost), minimum, cost)
    note = f"{text}; all rate logits were shifted by {shift:.4g}, which keeps {after}"
    if shift < LARGE_SHIFT:
        note += (
            "; so large a shift leaves little of what was learned:"
            " prune longer, or with a larger prune.gamma0"
        )
    return shifted, [note]


def _up(
    config: Config, variables: dict[str, Any], scheme: Scheme
) -> tuple[dict[str, Any], list[str]]:
    """Fills the budget up; with prune.live by weights that connect."""
    minimum, cost = minimum_rate(config), scheme.cost
    share, logits = cost.target_share(config.prune.target), leaves_by_path(variables["rates"])
    before = kept_total(logits, minimum, cost)
    if scheme.groups:
        live = _live(variables, scheme)
        filled = fill_live(variables, scheme.groups, minimum, share)
        before, after = live, _live(filled, scheme)
    else:
        tied = [group.readers for group in scheme.architecture.prunable]
        raised = fill(logits, minimum, cost, share, tied or None)
        filled = {**variables, "rates": tree_of_leaves(raised)}
        after = kept_total(raised, minimum, cost)
    if after == before:
        return filled, []
    unit = f"live {cost.unit}" if scheme.groups else cost.unit
    allowed = int(share * cost.total)
    text = f"prune: prune.fill raised rates: {after} {unit} of {allowed} allowed, before {before}"
    return filled, [text]


def _live(variables: Variables, scheme: Scheme) -> int:
    params = jax.device_get(jax.jit(bake)(variables)["params"])
    return sum(live_weights(params, scheme.groups).values())
