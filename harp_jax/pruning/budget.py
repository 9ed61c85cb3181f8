"""Counts what the masks of rates keep, and moves rates onto a budget."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from harp_jax.pruning.compression import as_cost
from harp_jax.pruning.layers import Path
from harp_jax.pruning.rates import logit_between, rate_from_logit


def kept_total(logits: Mapping[Any, Any], minimum: float, costs: Any) -> int:
    """Computes what the masks of these logits keep: a whole number, the sum over all layers.

    Args:
        logits: Rate logits by kernel path.
        minimum: Smallest rate a_min, in [0, 1).
        costs: Number of weights by kernel path; or a `Cost`.

    Returns:
        The total kept cost.
    """
    rates = {path: rate_from_logit(logit, minimum) for path, logit in logits.items()}
    return as_cost(costs).kept(rates)


def shift_to_budget(
    logits: Mapping[Any, Any], minimum: float, costs: Any, target: float
) -> tuple[dict[Any, jax.Array], float]:
    """Moves rates onto the budget by one common shift of all logits.

    One shift keeps the order of the layers' rates that was learned. It is found by bisection on the
    counts that the masks really keep.

    Args:
        logits: Rate logits by kernel path.
        minimum: Smallest rate a_min, in [0, 1).
        costs: Number of weights by kernel path; or a `Cost`.
        target: Largest allowed share of the dense cost, in (0, 1].

    Returns:
        The shifted logits and the shift (0 or negative); with 0 the logits met the budget already.

    Raises:
        ValueError: If even the minimum rates keep more than the target allows.
    """
    cost = as_cost(costs)
    budget = target * cost.total

    def shifted(shift: float) -> dict[Any, jax.Array]:
        return {path: jnp.float32(logit) + jnp.float32(shift) for path, logit in logits.items()}

    def fits(shift: float) -> bool:
        return kept_total(shifted(shift), minimum, cost) <= budget

    if fits(0.0):
        return shifted(0.0), 0.0
    low, high = -100.0, 0.0  # sigmoid(logit - 100) is zero for every logit that training can reach
    if not fits(low):
        least = kept_total(shifted(low), minimum, cost)
        raise ValueError(
            f"target={target}: the smallest rates (minimum {minimum:g}, at least one a layer)"
            f" keep {least} {cost.unit}, the target allows {int(budget)}"
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return shifted(low), low


def settle(logits: Mapping[Any, Any], minimum: float, costs: Any) -> dict[Any, jax.Array]:
    """Moves every rate to the middle of those that keep the same number.

    A rate can lie so close to a rounding boundary that another program rounds it to the other side:
    its mask would then have one weight more or less than the mask that was counted.

    Args:
        logits: Rate logits by kernel path.
        minimum: Smallest rate a_min, in [0, 1).
        costs: Number of weights by kernel path; or a `Cost`.

    Returns:
        The logits with the same masks; float32 scalars. Where a layer is so large that float32
        cannot tell its rates apart, its logit is unchanged.
    """
    cost = as_cost(costs)
    settled = {}
    for path, logit in logits.items():
        ends = cost.equal_rates(path, rate_from_logit(logit, minimum))
        middle = logit_between(*ends, minimum) if ends[1] > minimum else logit
        same = cost.equal_rates(path, rate_from_logit(middle, minimum)) == ends
        settled[path] = middle if same else jnp.float32(logit)
    return settled


def whole_counts(
    rates: Mapping[Path, float], sizes: Mapping[Path, int], budget: int, minimum: float
) -> dict[Path, int]:
    """Computes whole numbers of weights close to the rates that spend a budget exactly.

    Every layer gets the whole part of what its rate keeps; the weights left over go to the layers
    with the largest fractions. If minimum rates make the sum too large, the layers that are closest
    to their rates give weights up.

    Args:
        rates: Rates by path; together they spend about the budget.
        sizes: Number of weights, by path.
        budget: Number of weights that all layers keep.
        minimum: Smallest rate of a layer, in [0, 1): a layer keeps at least half a weight more.

    Returns:
        The kept weights of every path. Their sum is the budget, unless the minima alone exceed it.
    """
    lowest = lowest_counts(sizes, minimum)
    wanted = {path: max(rate * sizes[path], lowest[path]) for path, rate in rates.items()}
    counts = {path: int(number) for path, number in wanted.items()}
    left = budget - sum(counts.values())
    one = 1 if left > 0 else -1
    for _ in range(abs(left)):
        free = [path for path in counts if lowest[path] <= counts[path] + one <= sizes[path]]
        if not free:
            break
        counts[min(free, key=lambda path: one * (counts[path] - wanted[path]))] += one
    return counts


def lowest_counts(sizes: Mapping[Path, int], minimum: float) -> dict[Path, int]:
    """Computes the fewest weights that a rate above `minimum`, in [0, 1), keeps of each layer."""
    return {path: min(round(minimum * size) + 1, size) for path, size in sizes.items()}
