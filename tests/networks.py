"""All networks as tests use them, `tiny`'s first variables, and stages to train it in."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from harp_jax import models
from harp_jax.data import to_unit
from harp_jax.losses import LOSSES
from harp_jax.methods import METHODS
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import make_prunable
from harp_jax.pruning.scores import Granularity
from harp_jax.training.stages import STREAMS, WEIGHTS, Stage

RATE, MINIMUM = 0.5, 0.02


class Row(NamedTuple):
    """A network of `models.MODELS`.

    Attributes:
        shape: Height, width and channels of the images that it is made for.
        weights: Size of all kernels, for such images in 10 classes.
        parameters: Size of all parameters, likewise.
        padded: Height and width that digits are padded to in whole runs: small, and large enough.
        settings: Further fields of the configuration of whole runs.
        settings_by_loss: Those that only runs with one loss have.
    """

    shape: tuple[int, int, int]
    weights: int
    parameters: int
    padded: int
    settings: Mapping[str, Any] = {}
    settings_by_loss: Mapping[str, Mapping[str, Any]] = {}


# Networks that end in a mean over all pixels take images of any size. VGG16-BN needs 32 and the
# residual ones for ImageNet shrink them to a 32nd. In whole runs BatchNorm's statistics have to
# follow before a network is judged; an epoch has 20 steps. MART's gradients are several times as
# long as the others'.
ROWS = {
    "cnn": Row((28, 28, 1), 98_192, 98_554, padded=28),
    "tiny": Row((8, 8, 1), 3_592, 3_682, padded=8),
    "vgg16_bn": Row(
        (32, 32, 3), 15_302_848, 15_311_818, padded=32, settings={"finetune.epochs": 2}
    ),
    "resnet18": Row((32, 32, 3), 11_164_352, 11_173_962, padded=16),
    "preact_resnet18": Row((32, 32, 3), 11_164_352, 11_171_146, padded=16),
    "preact_resnet18_v2": Row((32, 32, 3), 11_164_352, 11_172_170, padded=16),
    "wrn_28_4": Row((32, 32, 3), 5_841_840, 5_849_050, padded=16),
    "wrn_28_10": Row((32, 32, 3), 36_461_232, 36_479_194, padded=16),
    "wrn_34_10": Row((32, 32, 3), 46_138_032, 46_160_474, padded=16),
    "resnet50": Row(
        (224, 224, 3),
        23_475_392,
        23_528_522,
        padded=62,
        settings={
            "pretrain.epochs": 8,
            "pretrain.learning_rate": 0.005,
            "finetune.epochs": 6,
        },
        settings_by_loss={
            "mart": {"pretrain.learning_rate": 0.001, "finetune.learning_rate": 0.002}
        },
    ),
}

# Networks of the table but for those that are another one with more layers and channels.
DISTINCT = [name for name in models.MODELS if name not in ("wrn_28_10", "wrn_34_10")]


def row(name: str) -> Row:
    """What tests have to know of a network; a failure that says where to add it if it is new."""
    if name not in ROWS:
        pytest.fail(f"model {name!r} has no row in ROWS of tests/networks.py: add one")
    return ROWS[name]


@functools.cache
def tiny(granularity: Granularity | None = None) -> dict[str, Any]:
    """Variables for 8x8 gray images in 10 classes.

    Args:
        granularity: None for the dense network; else every layer is pruned at rate 0.5.

    Returns:
        The variables, with the same params for every granularity; not to be donated.
    """

    if granularity is None:
        init = jax.jit(models.create("tiny", 10).init)
        return dict(init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    dense = tiny()
    rates = dict.fromkeys(parameter_costs(dense["params"]), RATE)
    return jax.jit(lambda tree: make_prunable(tree, rates, MINIMUM, granularity))(dense)


def stage(mode, loss, optimizer, batches_per_epoch, attack=None, **others):
    """A stage that trains what `mode` does, on images as they are.

    Args:
        mode: 'pretrain', 'finetune' or a pruning method.
        loss: The training loss; its name for the default one.
        optimizer: Over what the mode trains.
        batches_per_epoch: Batches in an epoch.
        attack: Of the training step.
        others: Further fields of `Stage`.
    """
    loss = LOSSES[loss]() if isinstance(loss, str) else loss
    method = METHODS.get(mode)
    fields = {
        "name": "prune" if method else mode,
        "stream": method.stream if method else STREAMS[mode],
        "trains": method.trains if method else WEIGHTS,
        "learning_rate": lambda _: 0.1,
        "augment": lambda images, keys: to_unit(images),
    }
    return Stage(
        **fields | others,
        loss=loss,
        attack=attack,
        optimizer=optimizer,
        batches_per_epoch=batches_per_epoch,
    )
