"""Joint learning: the weights train together with the masks."""

import dataclasses
from typing import Any

from harp_jax.methods.wrapped import Wrapped


@dataclasses.dataclass(frozen=True)
class Joint(Wrapped):
    """Trains the weights too, in the prune stage of a method that learns masks.

    The loss is that of the masked network, so a weight that is masked has no effect on it, and its
    derivative is zero. Only kept weights follow the loss then; a straight-through gradient for the
    others would move them for a network that has them all. Weight decay and momentum act on all
    weights, as in finetuning. A masked weight keeps about the value that its score was learned for,
    and the score still learns from the product of the weight and the gradient of the kernel's
    entry: what the loss would gain if the weight came back.

    Scores stay variables of their own. They start from the weights and do not follow them, also
    where they do not learn (`rate`): a weight that training shrinks is not removed for that.
    """

    @property
    def trains(self) -> frozenset[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The collections that the method inside trains, and the weights."""
        return self.method.trains | {"weights"}
