"""A network whose variables start with scores and rates."""

from typing import Any

import flax.linen as nn

from harp_jax.pruning.layers import bake, kernel_paths, make_prunable
from harp_jax.pruning.scores import Granularity
from harp_jax.types import Variables


class Prunable(nn.Module):
    """Adds scores and rates to a network's first variables, and runs it with the masks applied.

    Every layer has scores of its own and starts at rate 1, with 0 as the smallest rate.

    Attributes:
        network: Any network of `nn.Conv` and `nn.Dense`.
        granularity: 'weight' or 'channel'.
    """

    network: nn.Module
    granularity: Granularity

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns the network's first variables, with scores, rates and minimum rates.

        Args:
            rngs: As the network's `init` takes them.
            *args: As the network's `init` takes them.
            **kwargs: As the network's `init` takes them.
        """
        variables = self.network.init(rngs, *args, **kwargs)
        rates = dict.fromkeys(kernel_paths(variables["params"]), 1.0)
        return make_prunable(variables, rates, 0.0, self.granularity)

    @nn.nowrap
    def apply(self, variables: Variables, *args: Any, **kwargs: Any) -> Any:
        """Applies the masks to the kernels, then runs the network's `apply`.

        Args:
            variables: Variables of the network, with or without scores and rates.
            *args: As the network's `apply` takes them.
            **kwargs: As the network's `apply` takes them.
        """
        return self.network.apply(bake(variables), *args, **kwargs)
