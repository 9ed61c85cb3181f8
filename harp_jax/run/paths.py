"""Says before finetuning if a pruned network has no path from the images to the classes."""

import math

import flax.linen as nn
import jax

from harp_jax.config.sections import Config, method
from harp_jax.data import Dataset
from harp_jax.pruning import channels
from harp_jax.pruning.layers import bake, layer_name, leaves_by_path, rates_of
from harp_jax.pruning.live import unreached
from harp_jax.types import Variables

# Networks that keep more in every layer have paths; looking for them takes seconds.
_FEW = 0.02


def no_path(config: Config, model: nn.Module, dataset: Dataset, variables: Variables) -> str | None:
    """Looks for a path of kept weights from the images to the classes.

    Args:
        config: A valid configuration.
        model: The network.
        dataset: The data.
        variables: The variables of the pruned network.

    Returns:
        A sentence on the layers that nothing of the image reaches and on what to change; None if
        there is a path, or if the network's channels cannot be traced.
    """
    if config.prune.granularity != "weight" or not _keeps_few(variables):
        return None
    params = jax.device_get(jax.jit(bake)(variables)["params"])
    try:
        groups = channels.trace(model, dataset.image_shape).groups
    except Exception:  # a user's network may raise anything, and pruning weights traces no channels
        return None
    cut = unreached(params, groups)
    if not cut:
        return None
    names, count = ", ".join(map(layer_name, cut)), len(rates_of(variables))
    learns, even = method(config).learns_masks, ("uniform", "erk")
    ways = ["a larger prune.target"]
    ways += ["a larger prune.alpha"] * (learns or config.prune.strategy != "uniform")
    ways += ["prune.strategy='uniform' or 'erk'"] * (config.prune.strategy not in even)
    ways += ["prune.live=True"] * (learns and not config.prune.live)
    ways += ["more prune.epochs"] * learns
    return (
        "no path of kept weights leads from the images to the classes: nothing of an image reaches"
        f" {len(cut)} of {count} layers ({names}), and finetuning cannot change that; prune with"
        f" {', or with '.join(ways)}"
    )


def _keeps_few(variables: Variables) -> bool:
    """Returns whether some layer is empty or all together keep so little that paths may lack."""
    params, rates = leaves_by_path(variables["params"]), rates_of(variables)
    kept = {path: float(rate) * math.prod(params[path].shape) for path, rate in rates.items()}
    total = sum(math.prod(params[path].shape) for path in kept)
    return sum(kept.values()) < _FEW * total or min(kept.values()) < 1
