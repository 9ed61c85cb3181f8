"""One tree of everything that changes while a stage trains."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from harp_jax.losses import Free
from harp_jax.training import stages
from harp_jax.training.stages import Stage
from harp_jax.types import Variables

AVERAGED = ("params", "batch_stats")  # collections that an average has


class TrainState(flax.struct.PyTreeNode):
    """State of a stage. Checkpoints hold all of it, so that a resumed run has the same bits.

    Attributes:
        step: Batches done in this stage.
        key: Data of the run's PRNG key, from which all random numbers come.
        variables: All collections of the network.
        opt_state: Optimiser state of the trainable part; it holds gamma and its frozen flag.
        sums: Sums over the current epoch: 'loss' (times examples), 'correct', 'examples', and
            'bad_step', the first step after which the sum of losses was not finite, or -1.
        perturbation: Perturbation of the global batch, `[batch, height, width, channels]`, under
            Free-AT, on the [0, 1] scale; None for other losses.
        average: The moving average of `AVERAGED` (see `training.average`); None for none.
    """

    # Any array, or what JAX puts in an array's place while it works on a tree's structure.
    step: Any
    key: Any
    variables: dict[str, Any]
    opt_state: Any
    sums: dict[str, Any]
    perturbation: Any = None
    average: Any = None

    def network(self) -> dict[str, Any]:
        """Returns the variables of the network to validate and to keep: averaged if there are."""
        return {**self.variables, **(self.average or {})}

    def training(self) -> dict[str, Any]:
        """Returns everything but the variables, which a resumed run needs beside the network."""
        names = ["step", "key", "opt_state", "sums"]
        names += [name for name in ("perturbation", "average") if getattr(self, name) is not None]
        return {name: getattr(self, name) for name in names}


def not_finite(tree: Any) -> str | None:
    """Describes the arrays of a tree that hold NaN or an infinity.

    Args:
        tree: Arrays on the host.

    Returns:
        Such as 'params/fc/kernel is not finite'; None if all values are finite.
    """
    found = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree.leaves_with_path(tree)
        if not np.isfinite(leaf).all()
    ]
    if len(found) < 2:
        return f"{found[0]} is not finite" if found else None
    return f"{found[0]} and {len(found) - 1} more arrays are not finite"


def zero_sums() -> dict[str, np.ndarray]:
    """Returns the sums of an epoch that has not begun."""
    zero = np.zeros((), np.float32)
    return {"loss": zero, "correct": zero, "examples": zero, "bad_step": np.full((), -1, np.int32)}


def create(
    stage: Stage, variables: Variables, image_shape: tuple[int, ...] | None = None
) -> TrainState:
    """Returns the state before the first step of a stage.

    Args:
        stage: The stage.
        variables: All collections of the network.
        image_shape: Height, width and channels; only Free-AT needs them.

    Returns:
        The state, on the host.
    """
    trainable, _ = stages.split(variables, stage.trains)
    perturbation = None
    if isinstance(stage.loss, Free):
        assert image_shape is not None
        perturbation = jnp.zeros((stage.batch_size, *image_shape))
    average = {name: variables[name] for name in AVERAGED if name in variables}
    state = TrainState(
        step=jnp.int32(0),
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(stage.seed), stage.stream)),
        variables=stage.masking.first(dict(variables)),
        opt_state=jax.jit(stage.optimizer.init)(trainable),
        sums=zero_sums(),
        perturbation=perturbation,
        average=average if stage.average else None,
    )
    return jax.tree.map(np.asarray, state)
