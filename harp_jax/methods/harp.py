"""HARP: scores and rates are learned, under a compression loss whose weight grows."""

import dataclasses
from typing import ClassVar

from harp_jax.methods.base import Links, Method, Setting
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.settings import check
from harp_jax.types import Variables


@dataclasses.dataclass(frozen=True)
class Rate(Method):
    """Rates are learned; the scores are those of the weights (HARP's ablation).

    Attributes:
        gamma0: Weight of the compression loss in epoch 0, and its growth an epoch; > 0.
    """

    gamma0: float = 0.01

    stream: ClassVar = 3
    trains: ClassVar = frozenset({"rates", "norm"})

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "gamma0", self.gamma0 > 0, "numbers > 0")

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Returns the gradient of the compression loss, for the rates."""
        del variables
        link = add_compression_gradient(
            setting.scheme.cost,
            setting.target,
            setting.minimum,
            self.gamma0,
            setting.updates_per_epoch,
            setting.target_at,
        )
        return {"compression_gradient": link}


@dataclasses.dataclass(frozen=True)
class Harp(Rate):
    """Scores and rates are learned.

    Reference: Zhao & Wressnegger, "Holistic Adversarially Robust Pruning", ICLR 2023.
    """

    stream: ClassVar = 1
    trains: ClassVar = frozenset({"scores", "rates", "norm"})
