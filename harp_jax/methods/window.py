"""Rates that learn from the weights around the threshold, not from all of the layer.

HARP's gradient of a rate is straight-through: the sum of dL/dmask over all weights of the layer.
Yet a rate that grows or shrinks a little moves only the weights whose score is next to the
threshold. Where few are kept, the others are nearly all: masked weights of low score, which a
larger rate would not bring back, say how the rate learns. With a window the rate gets the
derivative of what it does. Where it balances the compression loss, the next weight of every layer
is worth as much.

With live connections the window replaces their gradient of the rates. Removed units are in no
window, and a rate that has no other weights left to add is not held up.
"""

import dataclasses

from harp_jax.methods.base import Masking, Setting
from harp_jax.methods.wrapped import Wrapped
from harp_jax.pruning.layers import bake
from harp_jax.pruning.window import windowed
from harp_jax.settings import check
from harp_jax.types import Variables


@dataclasses.dataclass(frozen=True)
class Window(Wrapped):
    """Lets the rates of a method that learns them learn at the threshold, see above.

    Attributes:
        method: The method inside, with the masks of `base.PLAIN` or `Live`.
        width: Ranks that count on each side of the threshold, relative to the kept number, in
            (0, 1]; at least one, and at most as many as are left to add.
    """

    width: float

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "width", 0 < self.width <= 1, "numbers in (0, 1]")

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns the masking of the method inside, with another gradient of the rates."""
        kernel = windowed(self.width)
        inside = self.method.masking(setting, variables)
        return inside._replace(seen=lambda variables: bake(variables, kernel)["params"])
