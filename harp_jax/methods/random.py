"""Random pruning: draws the weights or channels that stay; the strategy sets how many."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from harp_jax.methods.base import Method, Probe, Setting
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves


def random_scores(
    variables: dict[str, Any], architecture: Architecture, seed: int
) -> dict[str, Any]:
    """Draws scores uniformly from [0, 1).

    Args:
        variables: Variables of a network with scores.
        architecture: The network's layers; layers that share channels get the same scores.
        seed: The run's seed, >= 0.

    Returns:
        New variables that share all other arrays with the given ones.
    """
    owners = {path: path for path in architecture.pruned}
    owners |= {path: group.readers[0] for group in architecture.prunable for path in group.readers}
    places = {path: place for place, path in enumerate(architecture.pruned)}
    scores = {
        path: np.random.default_rng((seed, places[owners[path]])).random(leaf.shape, np.float32)
        for path, leaf in leaves_by_path(variables["scores"]).items()
    }
    return {**variables, "scores": tree_of_leaves(scores)}


@dataclasses.dataclass(frozen=True)
class Random(Method):
    """Random scores at the rates of the strategy: the lower bound for the other methods."""

    stream: ClassVar = 7

    def start(self, variables: dict[str, Any], setting: Setting, probe: Probe) -> dict[str, Any]:
        """Draws the scores."""
        del probe
        return random_scores(variables, setting.scheme.architecture, setting.seed)
