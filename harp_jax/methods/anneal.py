"""An annealed budget: the target comes down over a part of the prune stage, not at once."""

import dataclasses
from typing import Any

from jaxtyping import Array, Int

from harp_jax.methods.base import Links, Masking, Setting
from harp_jax.methods.wrapped import Wrapped
from harp_jax.pruning.annealing import annealed_logit, annealed_target, progress
from harp_jax.pruning.compression import soft_rate
from harp_jax.pruning.layers import leaves_by_path, rates_of, tree_of_leaves
from harp_jax.settings import check
from harp_jax.types import Scalar, Variables


@dataclasses.dataclass(frozen=True)
class Anneal(Wrapped):
    """Brings the budget of a method that learns masks down geometrically.

    Where rates learn, the compression loss has a target of the moment: from the cost of the first
    rates to the target; a target above that cost would not act. Its weight, gamma, freezes once the
    final target is reached, not one of the moment.

    Where rates are fixed, every layer's rate is rate^progress. All layers then begin dense, keep
    their order and end together, by a formula for each layer alone. Only the final rates are sure
    to be on the budget, so the total in between is not exactly geometric.

    Attributes:
        method: The method inside.
        share: Share of the stage's updates after which the target is the final one, in (0, 1].
    """

    share: float

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "share", 0 < self.share <= 1, "numbers in (0, 1]")

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Returns the links of the method inside, with a target of the moment."""
        last = max(setting.updates(self.share), 1)
        first = float(soft_rate(rates_of(variables), setting.scheme.cost))
        start = max(first, setting.target)

        def target_at(count: Int[Array, ""]) -> Scalar:
            return annealed_target(start, setting.target, progress(count + 1, last))

        return self.method.links(setting._replace(target_at=target_at), variables)

    def chosen_from(self, setting: Setting) -> int:
        """Returns the epoch that ends with the final rates, if the rates do not learn."""
        inside = self.method.chosen_from(setting)
        if "rates" in self.trains:
            return inside
        last = max(setting.updates(self.share), 1)
        return max(inside, -(-last // setting.updates_per_epoch) - 1)

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns the masking of the method inside; rates that do not learn come down with it."""
        inside = self.method.masking(setting, variables)
        if "rates" in self.trains:
            return inside
        last, final = max(setting.updates(self.share), 1), leaves_by_path(variables["rates"])

        def at(variables: dict[str, Any], updates: Any) -> dict[str, Any]:
            done = progress(updates, last)
            rates = {
                path: annealed_logit(logit, setting.minimum, done) for path, logit in final.items()
            }
            return {**variables, "rates": tree_of_leaves(rates)}

        def follow(
            variables: dict[str, Any], before: Variables, params: Any, updates: Int[Array, ""]
        ) -> dict[str, Any]:
            return at(inside.follow(variables, before, params, updates), updates)

        return inside._replace(
            first=lambda variables: at(inside.first(variables), 0), follow=follow
        )
