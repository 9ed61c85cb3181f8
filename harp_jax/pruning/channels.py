"""Prunes channels that layers share, together.

A channel can be removed only from all layers that read it: then the layers that write it need not
compute it either. In a plain chain a group of channels has one writer and one reader. A residual
addition adds the outputs of several layers, and every layer that reads the sum reads all of them.
Their channels form one larger group, with one set of kept channels, one score a channel and one
rate. A depthwise convolution reads each channel for one output alone, so that what it reads and
what it writes are one group; see `architecture.joined`.

Every reader has leaves of its own for scores and rates, so that checkpoints and `bake` treat each
layer by itself. The leaves of a group start equal, and `share_gradients` keeps them equal.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from harp_jax.pruning.architecture import Architecture, Group, joined, trace
from harp_jax.pruning.costs import Layer
from harp_jax.pruning.layers import Path, add_scores, leaves_by_path
from harp_jax.pruning.masks import kept_channels
from harp_jax.pruning.scores import channel_scores
from harp_jax.types import Rate, Scalar, Variables


def make_prunable(
    variables: Variables,
    rates: Mapping[Path, float],
    minimum: float,
    architecture: Architecture,
) -> dict[str, Any]:
    """Adds scores and rates of channels to the variables of a dense network, shared in each group.

    Args:
        variables: At least `params`; other collections are carried over.
        rates: Initial rate by kernel path; a group gets the mean of its readers'.
        minimum: Smallest rate a_min, in [0, 1).
        architecture: The network's architecture, with its groups, `joined`.

    Returns:
        New variables; the readers of channels that cannot be pruned have no scores.

    Raises:
        ValueError: If a rate is outside of [0, 1].
    """
    kernels = leaves_by_path(variables["params"])
    scores, shared_rates = {}, {}
    for group in architecture.prunable:
        initial = channel_scores([kernels[path] for path in group.readers], group.size)
        rate = sum(rates[path] for path in group.readers) / len(group.readers)
        scores |= dict.fromkeys(group.readers, initial)
        shared_rates |= dict.fromkeys(group.readers, rate)
    return add_scores(variables, scores, shared_rates, minimum)


def share_gradients(architecture: Architecture) -> optax.GradientTransformation:
    """Gives every leaf of a group the sum of the group's gradients.

    That is the gradient of one shared leaf, and leaves that start equal stay equal to the bit. For
    trees {collection: tree in the structure of `params`}, e.g. {'scores': ...}.

    Args:
        architecture: The network's architecture, with its groups, `joined`.

    Returns:
        A stateless gradient transformation.
    """

    def share(updates: Any, params: Any = None) -> Any:
        del params
        leaves, structure = jax.tree.flatten_with_path(updates)
        by_path = {tuple(key.key for key in keys): leaf for keys, leaf in leaves}
        collections = dict.fromkeys(path[0] for path in by_path)
        for collection in collections:
            for group in architecture.prunable:
                paths = [(collection, *reader) for reader in group.readers]
                total = functools.reduce(jnp.add, [by_path[path] for path in paths])
                by_path |= dict.fromkeys(paths, total)
        return jax.tree.unflatten(structure, list(by_path.values()))

    return optax.stateless(share)


@dataclasses.dataclass(frozen=True)
class FlopsCost:
    """FLOPs of a network whose channels are pruned: a `costs.Cost`.

    A layer costs flops * (kept share of what it reads) * (kept share of what it writes); shares of
    groups that are not prunable are 1. The rate of a group is that of its first reader.

    Attributes:
        architecture: The network's architecture, with its groups, `joined`.
    """

    architecture: Architecture
    unit = "FLOPs"

    @property
    def total(self) -> int:
        """FLOPs of the dense network on one image."""
        return sum(layer.flops for layer in self.architecture.layers)

    def soft_share(self, rates: Any) -> Scalar:
        """Computes sum(flops_l * a_in * a_out) / sum(flops_l) with the continuous rates."""
        readers = sorted(path for group in self.architecture.prunable for path in group.readers)
        by_path = dict(zip(readers, jax.tree.leaves(rates), strict=True))
        shares = [by_path[group.readers[0]] if group.prunable else 1.0 for group in self._groups]
        terms = []
        for layer, ends in self._ends:
            term = layer.flops / self.total
            for place in ends:
                term = term * shares[place]
            terms.append(term)
        return jnp.asarray(sum(terms), jnp.float32)

    def kept(self, rates: Mapping[Any, Rate]) -> int:
        """Computes the FLOPs of the network that has only the channels that the masks keep."""
        return self._flops(
            [
                int(kept_channels(rates[group.readers[0]], group.size))
                if group.prunable
                else group.size
                for group in self._groups
            ]
        )

    def equal_rates(self, path: Path, rate: Rate) -> tuple[float, float]:
        """Returns the rates of half a channel less and half a channel more than the mask keeps."""
        size = next(group.size for group in self._groups if path in group.readers)
        kept = int(kept_channels(rate, size))
        return (kept - 0.5) / size, (kept + 0.5) / size

    def target_share(self, rate: float) -> float:
        """Computes the share of the FLOPs of a network with round(rate * size) channels a group.

        Rounding is half to even, and at least one channel stays. The share is rounded up by one
        float64, so that its product with `total` allows that network.
        """
        flops = self._flops(
            [
                min(max(round(rate * group.size), 1), group.size) if group.prunable else group.size
                for group in self._groups
            ]
        )
        return min(1.0, float(np.nextafter(flops / self.total, 1.0)))

    def _flops(self, kept: Sequence[int]) -> int:
        """Computes the FLOPs with these numbers of channels, by group."""
        total = 0
        for layer, ends in self._ends:
            pruned = [place for place in ends if self._groups[place].prunable]
            flops = layer.flops // math.prod(self._groups[place].size for place in pruned)
            total += flops * math.prod(kept[place] for place in pruned)
        return total

    @property
    def _groups(self) -> tuple[Group, ...]:
        return self.architecture.groups

    @functools.cached_property
    def _ends(self) -> list[tuple[Layer, tuple[int, ...]]]:
        """Lists every layer with the places of the groups that it reads and writes.

        A depthwise convolution reads and writes one group, and costs FLOPs for each of its channels
        once.
        """
        reads = {path: place for place, group in enumerate(self._groups) for path in group.readers}
        writes = {path: place for place, group in enumerate(self._groups) for path in group.writers}
        return [
            (layer, tuple(ends[layer.path] for ends in (reads, writes) if layer.path in ends))
            for layer in self.architecture.layers
        ]


__all__ = [
    "Architecture",
    "FlopsCost",
    "Group",
    "joined",
    "make_prunable",
    "share_gradients",
    "trace",
]
