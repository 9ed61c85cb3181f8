"""Pruning methods of one's own: one that looks at gradients, one that prunes step by step.

    --config.prune.method=own_method:SNIP
    --config.prune.method=own_method:Gradual

Their settings are the fields; a configuration's file sets them by `config.own.SNIP = {...}`.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from harp_jax.methods import Masking, Method
from harp_jax.pruning.layers import bake, leaves_by_path, rates_of, tree_of_leaves
from harp_jax.pruning.rates import logit_from_rate
from harp_jax.pruning.scores import initial_scores
from harp_jax.settings import check


@dataclasses.dataclass(frozen=True)
class SNIP(Method):
    """One shot: keeps the weights whose removal changes the training loss most, |g * w|.

    Reference: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity",
    ICLR 2019; here under the adversarial loss, as the authors of HYDRA compare it.

    Attributes:
        batches: Over how many training batches the gradient is taken, >= 1.
    """

    batches: int = 4
    granularities: ClassVar = ("weight",)

    def __post_init__(self):
        check(self, "batches", self.batches >= 1, "whole numbers >= 1")

    def start(self, variables, setting, probe):
        dense = {**variables, "scores": jax.tree.map(jnp.ones_like, variables["scores"])}
        dense["rates"] = jax.tree.map(lambda _: logit_from_rate(1.0, 0.0), variables["rates"])
        gradient = leaves_by_path(probe.gradient(dense, self.batches))
        weights = leaves_by_path(variables["params"])
        paths = leaves_by_path(variables["scores"])
        scores = {path: jnp.abs(gradient[path] * weights[path]) for path in paths}
        return {**variables, "scores": tree_of_leaves(scores)}


@dataclasses.dataclass(frozen=True)
class Gradual(Method):
    """Weights train, and the masks of the largest ones grow sparser, along a cubic schedule.

    Reference: Zhu & Gupta, "To prune, or not to prune", 2017.

    Attributes:
        until: Share of the prune stage after which the final rates are reached, in (0, 1].
    """

    until: float = 0.75
    trains: ClassVar = frozenset({"weights", "norm"})
    granularities: ClassVar = ("weight",)

    def __post_init__(self):
        check(self, "until", 0 < self.until <= 1, "numbers in (0, 1]")

    def masking(self, setting, variables):
        final = rates_of(variables)  # those of the strategy; the first batch sees them already
        last = self.until * setting.epochs * setting.updates_per_epoch

        def follow(variables, before, params, updates):
            """The rates of this update, between 1 and those of the strategy."""
            del before, params
            left = (1.0 - jnp.minimum(updates / last, 1.0)) ** 3
            weights = leaves_by_path(variables["params"])
            scores = {path: initial_scores(weights[path]) for path in final}
            rates = {
                path: logit_from_rate(rate + (1.0 - rate) * left, setting.minimum)
                for path, rate in final.items()
            }
            return {**variables, "scores": tree_of_leaves(scores), "rates": tree_of_leaves(rates)}

        return Masking(seen=lambda variables: bake(variables)["params"], follow=follow)
