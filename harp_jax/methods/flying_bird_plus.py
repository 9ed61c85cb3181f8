"""Flying Bird+: Flying Bird whose number of weights follows how training generalises.

Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More Efficient Training"
(ICLR 2022). From half of the stage on, a regrowth looks at the last epochs. If the accuracy on the
training images rose above that of the validation split in at least half of them, more weights are
dropped. If validation got no better in at least half of them, more weights grow. Both can happen at
once. Layers that are dense do not change.

Differences to their code (VITA-Group/Sparsity-Win-Robust-Generalization), beside those of
`flying_bird`:

- Validation gets no better where its accuracy does not rise; theirs where its loss does not fall.
- The last regrowth returns every layer to its rate. Only networks from then on may be chosen, so
  that the method ends on the budget like any other. Theirs ends at the sparsity that comes of it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from harp_jax.methods.base import Accuracies, AfterEpoch, Setting
from harp_jax.methods.flying_bird import FlyingBird
from harp_jax.pruning.budget import lowest_counts
from harp_jax.pruning.layers import leaves_by_path, rates_of
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.rates import logit_from_count
from harp_jax.pruning.regrow import resized
from harp_jax.settings import check
from harp_jax.types import Variables


@dataclasses.dataclass(frozen=True)
class FlyingBirdPlus(FlyingBird):
    """Flying Bird that drops more weights where it overfits and grows more where it stands still.

    Stages of fewer than six epochs have no regrowth between `begin` and the last one, which returns
    to the budget: there it is Flying Bird.

    Reference: Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More
    Efficient Training", ICLR 2022.

    Attributes:
        drop: Share of each layer's kept weights that the first regrowth drops, in (0, 1]. It falls
            along a cosine over the stage.
        every: Epochs from one regrowth to the next, >= 1.
        growth: Which masked weights grow: `gradient`, those of largest gradient, or `random`.
        more_dropped: Weights that are dropped beside, as a share of those that any regrowth drops,
            in [0, 1].
        more_grown: Weights that grow beside, as such a share, in [0, 1].
        window: Epochs that are looked at, >= 1.
        threshold: Share of these epochs that have to agree, in (0, 1].
        begin: Share of the stage before which the number of weights stays, in [0, 1].
    """

    more_dropped: float = 0.4
    more_grown: float = 0.05
    window: int = 4
    threshold: float = 0.5
    begin: float = 0.5

    stream: ClassVar = 9

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        super().__post_init__()
        for name in ("more_dropped", "more_grown", "begin"):
            check(self, name, 0 <= getattr(self, name) <= 1, "numbers in [0, 1]")
        check(self, "window", self.window >= 1, "whole numbers >= 1")
        check(self, "threshold", 0 < self.threshold <= 1, "numbers in (0, 1]")

    def chosen_from(self, setting: Setting) -> int:
        """Returns the epoch that returns to the budget."""
        return max(self.timing(setting).due(), default=0)

    def after_epoch(self, setting: Setting, variables: Variables) -> AfterEpoch:
        """Returns the function that changes the rates before a regrowth."""
        budget = jax.device_get(leaves_by_path(variables["rates"]))
        due = self.timing(setting).due()

        def change(variables: dict[str, Any], accuracies: Sequence[Accuracies]) -> dict[str, Any]:
            epoch = len(accuracies)  # the next one
            if epoch not in due or epoch < self.begin * setting.epochs:
                return variables
            if epoch == due[-1]:
                return resized(variables, budget)
            drops, grows = self.verdict(accuracies)
            share = float(self.share(epoch * setting.updates_per_epoch, setting))
            more = share * (self.more_grown * grows - self.more_dropped * drops)
            return (
                resized(variables, _scaled(variables, more, setting.minimum)) if more else variables
            )

        return change

    def verdict(self, accuracies: Sequence[Accuracies]) -> tuple[bool, bool]:
        """Decides whether to drop more weights, and whether to grow more.

        Args:
            accuracies: Of all epochs so far, of training and validation.

        Returns:
            (drop more, grow more); neither after a single epoch.
        """
        recent = np.asarray(accuracies[-(self.window + 1) :])
        if len(recent) < 2:
            return False, False
        wider = np.mean(np.diff(recent[:, 0] - recent[:, 1]) > 0)
        no_better = np.mean(np.diff(recent[:, 1]) <= 0)
        return bool(wider >= self.threshold), bool(no_better >= self.threshold)


def _scaled(variables: Variables, more: float, minimum: float) -> dict[Any, Any]:
    """Computes the logits at which layers keep (1 + more) times as many weights, but dense ones.

    Args:
        variables: All collections of the network.
        more: Change of the kept number, > -1.
        minimum: Smallest rate of a layer, in [0, 1).

    Returns:
        Rate logits by path; layers that keep all or none more than the minimum are left out.
    """
    rates, leaves = rates_of(variables), leaves_by_path(variables["params"])
    sizes = {path: leaves[path].size for path in rates}
    lowest, logits = lowest_counts(sizes, minimum), {}
    for path, size in sizes.items():
        kept = int(kept_weights(rates[path], size))
        count = min(max(kept + round(more * kept), lowest[path]), size)
        if kept < size and count != kept:
            logits[path] = logit_from_count(count, size, minimum)
    return logits
