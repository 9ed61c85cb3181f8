"""Magnitude pruning, in one shot."""

import dataclasses
from typing import ClassVar

from harp_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class Magnitude(Method):
    """The largest weights of each layer stay, at the rates of the strategy.

    With `prune.strategy='global'` the largest weights of the whole network stay.

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015.
    """

    stream: ClassVar = 6
