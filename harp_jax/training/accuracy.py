"""Accuracy of a network on a split, clean or under attack, over all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from tqdm import tqdm

from harp_jax import models
from harp_jax.attacks import Attack
from harp_jax.data import Split, eval_batches, to_unit
from harp_jax.pruning.layers import bake
from harp_jax.training import parallel
from harp_jax.types import Device, Variables

# (replicated plain variables, split, label of the progress bar) -> accuracy in [0, 1].
Accuracy = Callable[[Any, Split, str], float]


class Measurement(NamedTuple):
    """The compiled functions that measure a network, for all stages of a run and its evaluation.

    Attributes:
        bake: `bake` for replicated variables: masks are applied once, before a whole evaluation.
        under: Attack, or None for clean images -> the accuracy under it. Asked again for the same
            attack it gives the same program.
    """

    bake: Callable[[Any], Any]
    under: Callable[[Attack | None], Accuracy]


def make_measurement(
    model: nn.Module, *, seed: int, batch_size: int, devices: Sequence[Device]
) -> Measurement:
    """Builds what measures a network.

    Args:
        model: The network.
        seed: Seed of the attacks' noise, which is keyed by the example's place in the split.
        batch_size: Examples at once over all devices of all processes.
        devices: Local devices.

    Returns:
        Functions that compile at their first use and, for the same shapes, never again.
    """
    under = functools.partial(
        make_accuracy, model, seed=seed, batch_size=batch_size, devices=devices
    )
    return Measurement(parallel.parallel(bake, devices), functools.cache(under))


def make_accuracy(
    model: nn.Module,
    attack: Attack | None,
    *,
    seed: int,
    batch_size: int,
    devices: Sequence[Device],
) -> Accuracy:
    """Builds a function that measures accuracy; it compiles once.

    Args:
        model: The network.
        attack: Attack to measure under, or None for natural accuracy.
        seed: Seed of the attack's noise, which is keyed by the example's place in the split.
        batch_size: Examples at once over all devices of all processes.
        devices: Local devices.

    Returns:
        (replicated plain variables, see `Measurement.bake`; split; label in front of the progress
        bar) -> share of the split's examples that are classified rightly, in [0, 1]. Every example
        counts once.
    """

    def count(variables: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits_fn = models.logits_fn(model, variables)
        images, labels = to_unit(batch["images"]), batch["labels"]
        if attack is not None:
            key = jax.random.key(seed)
            keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch["index"])
            images = attack(logits_fn, images, labels, keys)
        correct = (logits_fn(images).argmax(-1) == labels) & batch["valid"]
        return parallel.total({"correct": correct.sum(), "examples": batch["valid"].sum()})

    count_everywhere = parallel.parallel(count, devices)

    def accuracy(variables: Any, split: Split, label: str) -> float:
        batches = eval_batches(
            split,
            batch_size=batch_size,
            devices=len(devices),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        correct = examples = 0
        bar = tqdm(total=len(split), desc=label, unit="img", leave=False, disable=None)
        with bar:
            for batch in parallel.prefetch(batches, devices):
                counts = parallel.to_host(count_everywhere(variables, batch))
                correct, examples = correct + counts["correct"], examples + counts["examples"]
                bar.update(int(counts["examples"]))
        return float(correct / examples)

    return accuracy
