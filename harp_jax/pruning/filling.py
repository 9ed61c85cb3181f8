"""Filling up: spends what a network leaves of its budget on the weights with the next scores."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harp_jax.pruning.budget import kept_total, lowest_counts, settle
from harp_jax.pruning.channels import Group
from harp_jax.pruning.compression import as_cost
from harp_jax.pruning.costs import Cost, WeightCost
from harp_jax.pruning.layers import Path, bake, leaves_by_path, tree_of_leaves
from harp_jax.pruning.live import live_kernels, live_units, silence
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.rates import logit_between, logit_from_count, rate_from_logit
from harp_jax.types import Rate, Variables

_HIGHEST = 100.0  # sigmoid(logit + 100) is one for every logit that training can reach


def fill(
    logits: Mapping[Any, Any],
    minimum: float,
    costs: Any,
    target: float,
    tied: Iterable[Sequence[Any]] | None = None,
) -> dict[Any, jax.Array]:
    """Raises rates until the masks keep as much as the budget allows, at most.

    All logits get one common shift, which keeps the order of the layers. What is left then, where
    several layers would grow at once, goes to single layers, in their order. A layer that grows
    gets the weights with its next-highest scores.

    Args:
        logits: Rate logits by kernel path; their masks keep at most what the target allows.
        minimum: Smallest rate a_min, in [0, 1).
        costs: Number of weights by kernel path; or a `Cost`.
        target: Largest allowed share of the dense cost, in (0, 1].
        tied: Paths of layers that share a rate, together; None if no layers do.

    Returns:
        Logits whose masks keep all that the given ones do, in any program (`budget.settle`). No
        layer can grow without exceeding the budget; if none could before, the logits are the given
        ones.
    """
    cost = as_cost(costs)
    budget, before = target * cost.total, kept_total(logits, minimum, cost)

    def shifted(shift: float) -> dict[Any, jax.Array]:
        return {path: jnp.float32(logit) + jnp.float32(shift) for path, logit in logits.items()}

    def fits(candidate: Mapping[Any, Any]) -> bool:
        return kept_total(candidate, minimum, cost) <= budget

    low, high = 0.0, _HIGHEST
    if fits(shifted(high)):
        low = high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(shifted(middle)) else (low, middle)
    filled = shifted(low)
    for paths in [[path] for path in logits] if tied is None else tied:
        kept = kept_total(filled, minimum, cost)
        while (larger := _larger(filled, paths, minimum, cost)) is not None and fits(larger):
            if kept == (kept := kept_total(larger, minimum, cost)):
                break
            filled = larger
    if kept_total(filled, minimum, cost) == before:
        return {path: jnp.float32(logit) for path, logit in logits.items()}
    return settle(filled, minimum, cost)


def _larger(
    logits: dict[Any, jax.Array], paths: Sequence[Any], minimum: float, cost: Cost
) -> dict[Any, jax.Array] | None:
    """Returns the logits with the next larger mask in some layers; None if these are dense."""
    low, high = cost.equal_rates(paths[0], rate_from_logit(logits[paths[0]], minimum))
    if high >= 1:
        return None
    logit = logit_between(high, 2 * high - low, minimum)
    return {**logits, **dict.fromkeys(paths, logit)}


@dataclasses.dataclass(frozen=True)
class _LiveCost(WeightCost):
    """The number of kept weights, each layer's up to a largest number."""

    most: Mapping[Path, int]

    def count(self, path: Path, rate: Rate) -> int:
        """Counts the weights of a layer."""
        return min(int(kept_weights(rate, self.sizes[path])), self.most[path])

    def kept(self, rates: Mapping[Any, Rate]) -> int:
        """Counts the weights of all layers."""
        return sum(self.count(path, rate) for path, rate in rates.items())


def fill_live(
    variables: Variables, groups: Sequence[Group], minimum: float, target: float
) -> dict[str, Any]:
    """Fills the budget with weights that connect the images with the classes.

    Weights at dead units leave the masks: their scores become zero. Those at live units are added
    by `fill`. Each of them reads a unit that the images reach and writes one that reaches the
    classes. No dead unit comes back, which would take two weights at once.

    Args:
        variables: Variables of a network whose masks of single weights keep at most what the target
            allows.
        groups: All channels of the network (`channels.trace`).
        minimum: Smallest rate a_min, in [0, 1).
        target: Largest allowed share of the weights, in (0, 1].

    Returns:
        Variables with new scores and rates, whose masks keep all live weights with a score. A layer
        that keeps dead weights has no other ones for its smallest rate. Without any live weight the
        variables are the given ones.
    """
    params = jax.device_get(jax.jit(bake)(variables)["params"])
    kernels = live_kernels(params, groups)
    if not any(kernel.any() for kernel in kernels.values()):
        return dict(variables)
    scores = {path: np.array(leaf) for path, leaf in leaves_by_path(variables["scores"]).items()}
    for group in filter(lambda group: group.prunable, groups):
        silence(scores, group, np.asarray(live_units(group, kernels)))
    sizes = {path: leaf.size for path, leaf in scores.items()}
    lowest = lowest_counts(sizes, minimum)
    most = {path: max(int(np.count_nonzero(leaf)), lowest[path]) for path, leaf in scores.items()}
    cost = _LiveCost(sizes, most)
    filled = fill(leaves_by_path(variables["rates"]), minimum, cost, target)
    rates = {path: rate_from_logit(logit, minimum) for path, logit in filled.items()}
    logits = {
        path: logit_from_count(cost.count(path, rate), sizes[path], minimum)
        for path, rate in rates.items()
    }
    return {**variables, "scores": tree_of_leaves(scores), "rates": tree_of_leaves(logits)}
