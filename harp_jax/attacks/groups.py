"""Attacking a batch in small groups, whose activations fit into the cache of a CPU core.

A small network's activations then stay in the cache; a large one's weights would have to be read
more often (`python -m benchmarks.attack`).
"""

import dataclasses

import jax
from jax import lax

from harp_jax.attacks.base import Attack, norm_of
from harp_jax.attacks.norms import per_example_keys
from harp_jax.pruning.layers import kernel_paths, leaves_by_path
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn, Variables

_LARGEST = 1_000_000  # weights of a network


@dataclasses.dataclass(frozen=True)
class InGroups:
    """An attack that finds the points of one group after the other, in a loop of the program.

    They are those of the attack itself, but for rounding.

    Attributes:
        attack: The attack; it treats each example on its own.
        size: Largest number of images in a group, >= 1. A batch that cannot be divided into equal
            groups of at least half of that is attacked as a whole.
    """

    attack: Attack
    size: int

    @property
    def epsilon(self) -> float:
        """Radius of the attack."""
        return self.attack.epsilon

    @property
    def norm(self) -> str:
        """Norm of the attack."""
        return norm_of(self.attack)

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`."""
        size = group_size(len(images), self.size)
        if size == len(images):
            return self.attack(logits_fn, images, labels, key)
        batch = images, labels, per_example_keys(key, len(images))
        groups = jax.tree.map(lambda each: each.reshape(-1, size, *each.shape[1:]), batch)
        found = lax.map(lambda group: self.attack(logits_fn, *group), groups)
        return found.reshape(images.shape)


def group_size(examples: int, size: int) -> int:
    """Returns the largest divisor of a number in [size / 2, size], or the number if none is."""
    fits = (
        each
        for each in range(min(size, examples), 0, -1)
        if examples % each == 0 and 2 * each >= size
    )
    return next(fits, examples)


def pays_in_groups(params: Variables) -> bool:
    """Returns whether a CPU computes small groups of images faster than a whole batch at once.

    Args:
        params: The network's params, or their shapes.
    """
    leaves = leaves_by_path(params)
    return sum(leaves[path].size for path in kernel_paths(params)) <= _LARGEST
