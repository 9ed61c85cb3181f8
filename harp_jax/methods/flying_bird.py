"""Flying Bird: weights train under masks that regrow.

Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More Efficient Training"
(ICLR 2022). Regularly the kept weights of smallest magnitude are dropped and as many masked ones
grow, layer by layer. The share that is dropped falls along a cosine from `drop` to 0.5 %.

Differences to their code (VITA-Group/Sparsity-Win-Robust-Generalization):

- The stage starts from the largest weights of the pre-trained network; theirs from random weights
  under random masks.
- Masks regrow at the start of every epoch, until three quarters of the stage. Theirs do so after
  every 900 batches of 128, after 1,200 in the second half, to the end.
- By default the weights of largest gradient grow, as in RigL. Their scripts grow at random:
  `growth="random"`. Random growth is exact in number here, on average there.
- What drops has momentum left, which fades; theirs sets it to zero.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from harp_jax.methods.base import Masking, Method, Setting
from harp_jax.methods.regrowth import Timing, regrowing
from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves
from harp_jax.settings import check, check_name
from harp_jax.types import Scalar, Variables

LAST_SHARE = 0.005
GROWTH = ("gradient", "random")


@dataclasses.dataclass(frozen=True)
class FlyingBird(Method):
    """Flying Bird: weights train, and the smallest regularly give their places to others.

    Reference: Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More
    Efficient Training", ICLR 2022.

    Attributes:
        drop: Share of each layer's kept weights that the first regrowth drops, in (0, 1]. It falls
            along a cosine over the stage.
        every: Epochs from one regrowth to the next, >= 1.
        growth: Which masked weights grow: `gradient`, those of largest gradient, or `random`.
    """

    drop: float = 0.5
    every: int = 1
    growth: str = "gradient"

    stream: ClassVar = 8
    trains: ClassVar = frozenset({"weights", "norm"})
    granularities: ClassVar = ("weight",)

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "drop", 0 < self.drop <= 1, "numbers in (0, 1]")
        check(self, "every", self.every >= 1, "whole numbers >= 1")
        check_name(self, "growth", GROWTH)

    def timing(self, setting: Setting) -> Timing:
        """Returns the epochs that begin with a regrowth."""
        return Timing(
            setting.epochs, setting.updates_per_epoch, setting.updates_per_batch, self.every
        )

    def share(self, updates: Any, setting: Setting) -> Scalar:
        """Computes the share of the kept weights to drop after so many updates."""
        done = jnp.asarray(updates) / (setting.epochs * setting.updates_per_epoch)
        last = min(LAST_SHARE, self.drop)
        return last + (self.drop - last) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns masks that regrow."""
        del variables

        def growth(gradient: Any, updates: Int[Array, ""]) -> Any:
            if self.growth == "gradient":
                return gradient
            key = jax.random.fold_in(jax.random.key(setting.seed), self.stream)
            return random_like(gradient, jax.random.fold_in(key, updates))

        return regrowing(self.timing(setting), lambda updates: self.share(updates, setting), growth)


def random_like(tree: Variables, key: jax.Array) -> dict[str, Any]:
    """Draws numbers uniformly from [0, 1), for each leaf with a key of its own.

    Args:
        tree: Nested dict of arrays.
        key: The key; a leaf's is folded from its place in the order of the paths.

    Returns:
        A tree of the same structure and shapes.
    """
    leaves = leaves_by_path(tree)
    keys = {path: jax.random.fold_in(key, place) for place, path in enumerate(sorted(leaves))}
    return tree_of_leaves(
        {path: jax.random.uniform(keys[path], leaf.shape) for path, leaf in leaves.items()}
    )
