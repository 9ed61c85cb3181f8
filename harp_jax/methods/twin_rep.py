"""Twin-Rep: weights train as products of two factors, whose decay makes most products small.

Li et al., "Learning Adversarially Robust Sparse Networks via Weight Reparameterization" (AAAI
2023). Every weight is w = u * v, element by element. Weight decay on both factors is least where
|u| = |v|, and is then that of |w|: it pulls towards few large weights as L1 does, with no term in
the loss. The network first trains densely. Then it is pruned once, by the magnitude of the
products, and the factors go on under the fixed mask. For channels, each layer's weights are
W = V A (Channel-Rep): A, from outputs to outputs, mixes the filters.

Differences to their code (UCAS-LCH/Twin-Rep):

- The stage starts from the pre-trained network: |u| = |v| with the sign at u, and A is the
  identity; theirs from random factors. With |u| = |v| a weight keeps its sign.
- The rates are those of the strategy, to the weight; theirs are of one threshold on the products
  for the whole network. `prune.strategy='global'` takes it from the pre-trained weights.
- Channels are those that layers read, as everywhere here; theirs are those that layers write.
- The factors are in the state of the optimiser. Networks, checkpoints and files have the products.
- Their weight decay is 2e-4, `optimizer.weight_decay` here is for all methods.
- Networks are validated as pruned from the first epoch on.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from harp_jax.methods.base import Links, Masking, Method, Probe, Setting
from harp_jax.methods.factors import factored
from harp_jax.pruning.layers import bake, leaves_by_path, masked_kernel
from harp_jax.settings import check
from harp_jax.types import Kernel, Scalar, Scores, Variables


def elementwise(weights: Kernel) -> tuple[Kernel, Kernel]:
    """Splits weights into factors of equal magnitude; the first has the sign."""
    root = jnp.sqrt(jnp.abs(weights))
    return jnp.sign(weights) * root, root


def mixed(weights: Kernel) -> tuple[Kernel, Kernel]:
    """Splits weights `[..., out]` into themselves and the identity `[out, out]`."""
    return weights, jnp.eye(weights.shape[-1], dtype=weights.dtype)


def _mix(weights: Kernel, matrix: Kernel) -> Kernel:
    return jnp.matmul(weights, matrix, precision=lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class TwinRep(Method):
    """Twin-Rep: weights train as products of two factors, first densely, then under a fixed mask.

    Reference: Li et al., "Learning Adversarially Robust Sparse Networks via Weight
    Reparameterization", AAAI 2023.

    Attributes:
        dense: Share of the stage's epochs before pruning, in [0, 1). It is rounded to whole epochs:
            at least one, and not all of them; none for 0.
    """

    dense: float = 0.1

    stream: ClassVar = 10
    trains: ClassVar = frozenset({"weights", "norm"})

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the field and the allowed values."""
        check(self, "dense", 0 <= self.dense < 1, "numbers in [0, 1)")

    def dense_epochs(self, setting: Setting) -> int:
        """Returns the number of epochs before pruning."""
        if self.dense == 0:
            return 0
        return min(max(round(self.dense * setting.epochs), 1), setting.epochs - 1)

    def start(self, variables: dict[str, Any], setting: Setting, probe: Probe) -> dict[str, Any]:
        """Marks the network as dense if it is to train densely first, else as pruned."""
        del probe
        mark = _of_a_dense_layer if self.dense_epochs(setting) else jnp.abs
        return {**variables, "scores": jax.tree.map(mark, variables["scores"])}

    def links(self, setting: Setting, variables: Variables) -> Links:
        """Returns the optimiser of the factors, for the weights."""
        by_channel = setting.scheme.tie is not None
        split, product = (mixed, _mix) if by_channel else (elementwise, jnp.multiply)
        paths = [("params", *path) for path in leaves_by_path(variables["scores"])]
        return {
            "wrap_weights": functools.partial(factored, paths=paths, split=split, product=product)
        }

    def masking(self, setting: Setting, variables: Variables) -> Masking:
        """Returns no masks at first, then those of the largest products."""
        rates = dict.fromkeys(leaves_by_path(variables["scores"]), 1.0)
        pruned_at = self.dense_epochs(setting) * setting.updates_per_epoch

        def scores_of(variables: Variables) -> Any:
            params = {"params": variables["params"]}
            return setting.scheme.make_prunable(params, rates, setting.minimum)["scores"]

        def follow(
            variables: dict[str, Any], before: Variables, params: Any, updates: Int[Array, ""]
        ) -> dict[str, Any]:
            del before, params

            def renewed(variables: Variables) -> Any:
                scores = scores_of(variables)
                return jax.tree.map(
                    lambda leaf: jnp.where(
                        updates < pruned_at, _of_a_dense_layer(leaf), jnp.abs(leaf)
                    ),
                    scores,
                )

            scores = lax.cond(
                updates <= pruned_at, renewed, lambda variables: variables["scores"], variables
            )
            return {**variables, "scores": scores}

        return Masking(lambda variables: bake(variables, _seen_kernel)["params"], follow)


# Masks rank the magnitudes of the scores. Their sign is free, and says whether a layer is dense.
def _of_a_dense_layer(scores: Scores) -> Scores:
    return -jnp.abs(scores)


def _seen_kernel(kernel: Kernel, scores: Scores, logit: Scalar, minimum: Scalar) -> Kernel:
    """Masks the kernel of a layer, unless the layer is dense."""
    is_dense = jnp.signbit(lax.stop_gradient(scores)).any()
    return jnp.where(is_dense, kernel, masked_kernel(kernel, scores, logit, minimum))
