"""A stage of a run, and the variables that it trains.

Pretraining and finetuning train weights and BatchNorm; the method says what the prune stage trains
(`methods`). BatchNorm's affine parameters keep training while the weights are fixed, as in the
authors' code, and its running statistics always follow. The other
variables are neither differentiated nor given to the optimiser. A stage that trains nothing has no
epochs: it returns the variables that it starts from.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from harp_jax.attacks import Attack
from harp_jax.losses import Loss
from harp_jax.methods import PLAIN, AfterEpoch, Ascend, Masking, Trained
from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves
from harp_jax.types import Images, RawImages, Variables
from harp_jax.workdir import files

STAGES = files.STAGES
Augment = Callable[[RawImages, jax.Array], Images]

# Part of the random key of a stage; a prune stage has that of its method.
STREAMS = {"pretrain": 0, "finetune": 4}
WEIGHTS: frozenset[Trained] = frozenset({"weights", "norm"})
_FROZEN_COLLECTIONS = ("batch_stats", "minimum_rates")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that defines how a stage trains.

    A step takes one batch. Most losses make one update of the optimiser with it, Free-AT several.
    The loop counts batches, the optimiser counts updates.

    Attributes:
        name: 'pretrain', 'prune' or 'finetune'.
        stream: Part of the stage's random key.
        trains: The groups of variables that train.
        loss: The training loss.
        attack: The attack that finds the images of a step, with BatchNorm in inference mode; None
            for a loss of clean images, which are then used instead.
        optimizer: The optimiser of the trainable part of the variables.
        learning_rate: Function from the number of updates done to the learning rate.
        batches_per_epoch: Batches, and so steps, in an epoch.
        augment: (uint8 images, one key per image) -> images in [0, 1].
        masking: How masks enter the step.
        ascend: (scores, their gradient) -> the scores at which the gradient of the update is taken,
            with the same images. BatchNorm's statistics, the loss and the accuracy are those of the
            original scores. None takes the gradient at the original scores.
        after_epoch: Changes the variables after each epoch, see `Method.after_epoch`.
        chosen_from: First epoch whose network may be the stage's result.
        average: Decay of the moving average of the weights, in [0, 1); 0 for none. See
            `training.average`.
        epochs: Epochs to train, >= 1.
        batch_size: Examples in a batch, over all devices of all processes.
        seed: The seed of the run, for the order of the examples and all random numbers.
    """

    name: Literal["pretrain", "prune", "finetune"]
    stream: int
    trains: frozenset[Trained]
    loss: Loss
    attack: Attack | None
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    batches_per_epoch: int
    augment: Augment
    masking: Masking = PLAIN
    ascend: Ascend | None = None
    after_epoch: AfterEpoch | None = None
    chosen_from: int = 0
    average: float = 0.0
    epochs: int = 1
    batch_size: int = 1
    seed: int = 0


def _group(path: tuple[str, ...], norms: set[tuple[str, ...]]) -> str:
    collection = path[0]
    if collection == "params":
        return "norm" if path[:-1] in norms else "weights"
    if collection in ("scores", "rates"):
        return collection
    if collection in _FROZEN_COLLECTIONS:
        return "never"
    raise ValueError(f"variables: unknown collection {collection!r} at {'/'.join(path)}")


def split(
    variables: Variables, trains: frozenset[Trained]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits variables into those that a stage trains and the others.

    Args:
        variables: All collections of the network.
        trains: The groups of variables that train.

    Returns:
        (trainable, frozen): nested dicts that `merge` puts together again.

    Raises:
        ValueError: If a collection belongs to no group.
    """
    leaves = leaves_by_path(variables)
    norms = {path[:-1] for path in leaves if path[-1] == "scale"}
    chosen = {path for path in leaves if _group(path, norms) in trains}
    trainable = {path: leaf for path, leaf in leaves.items() if path in chosen}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in chosen}
    return tree_of_leaves(trainable), tree_of_leaves(frozen)


def merge(trainable: Variables, frozen: Variables) -> dict[str, Any]:
    """Returns the whole variables from the two parts of `split`."""
    return tree_of_leaves({**leaves_by_path(frozen), **leaves_by_path(trainable)})
