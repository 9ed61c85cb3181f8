"""HYDRA: scores are learned at given rates."""

import dataclasses
from typing import ClassVar

from harp_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Hydra(Method):
    """Scores are learned; the rates are those of the strategy.

    Reference: Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020.
    """

    stream: ClassVar = 2
    trains: ClassVar = frozenset({"scores", "norm"})
