"""Accuracy of a network on a split, clean or under attack, over all devices."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from harp_jax import models, parallel
from harp_jax.attacks import Attack, norms
from harp_jax.attacks.base import norm_of, zero_gradients
from harp_jax.attacks.groups import InGroups
from harp_jax.attacks.objectives import finite, is_wrong
from harp_jax.data import Split, eval_batches, to_unit
from harp_jax.pruning.layers import bake
from harp_jax.types import Device, Model, Variables


class Score(NamedTuple):
    """Accuracy on a split.

    Attributes:
        accuracy: Share of the examples that are classified correctly, in [0, 1].
        balanced: Mean of the accuracies of all classes that occur, in [0, 1].
        excess: Largest distance of a perturbation outside its ball or the box; 0 up to rounding,
            nan if a perturbation is not finite.
        correct: Number of the correctly classified examples of each class.
        examples: Number of the examples of each class.
        not_finite: Number of the examples whose logits are not all finite; they count as wrong.
    """

    accuracy: float
    balanced: float
    excess: float = 0.0
    correct: tuple[int, ...] = ()
    examples: tuple[int, ...] = ()
    not_finite: int = 0

    @classmethod
    def of(
        cls,
        correct: Shaped[np.ndarray, " classes"],
        examples: Shaped[np.ndarray, " classes"],
        excess: float = 0.0,
        not_finite: int = 0,
    ) -> "Score":
        """Computes the score from the numbers of correct and of all examples of each class."""
        there = examples > 0
        shares = correct[there] / examples[there]
        return cls(
            accuracy=float(correct.sum() / examples.sum()),
            balanced=float(shares.mean()),
            excess=float(excess),
            correct=tuple(map(int, correct)),
            examples=tuple(map(int, examples)),
            not_finite=int(not_finite),
        )


# (replicated plain variables, split, label of the progress bar) -> score.
Accuracy = Callable[[Any, Split, str], Score]


# Like `Accuracy`, but the result is a share of the examples, in [0, 1].
Share = Callable[[Any, Split, str], float]


class Measurement(NamedTuple):
    """The compiled functions that measure a network, for all stages of a run and its evaluation.

    Attributes:
        bake: `bake` for replicated variables; it applies the masks once, before an evaluation.
        under: (attack, or None for clean images) -> the function that measures accuracy under it.
            The same attack gets the same program.
        zero_gradients: (name of a loss) -> the function that measures the share of the images at
            which its gradient is zero, see `attacks.base.zero_gradients`.
    """

    bake: Callable[[Any], Any]
    under: Callable[[Attack | None], Accuracy]
    zero_gradients: Callable[[str], Share]


def make_measurement(
    model: Model,
    *,
    seed: int,
    batch_size: int,
    devices: Sequence[Device],
    group: int | None = None,
    precision: str | None = None,
) -> Measurement:
    """Builds the functions that measure a network.

    Args:
        model: The network.
        seed: Seed of the attacks' noise, which is keyed by the example's place in the split.
        batch_size: Examples at once over all devices of all processes.
        devices: Local devices.
        group: Largest number of images that a device attacks at once; None means all. See
            `attacks.groups`.
        precision: Precision of float32 products, see `parallel.parallel`.

    Returns:
        Functions that compile at their first use, and only once for the same shapes.
    """
    common: Any = {"batch_size": batch_size, "devices": devices, "precision": precision}
    under = functools.partial(make_accuracy, model, seed=seed, group=group, **common)
    zero = functools.partial(make_zero_gradients, model, **common)
    return Measurement(
        parallel.parallel(bake, devices), functools.cache(under), functools.cache(zero)
    )


def make_accuracy(
    model: Model,
    attack: Attack | None,
    *,
    seed: int,
    batch_size: int,
    devices: Sequence[Device],
    group: int | None = None,
    precision: str | None = None,
) -> Accuracy:
    """Builds a function that measures accuracy; it compiles once.

    Args:
        model: The network.
        attack: Attack to measure under, or None for natural accuracy.
        seed: Seed of the attack's noise, which is keyed by the example's place in the split.
        batch_size: Examples at once over all devices of all processes.
        devices: Local devices.
        group: See `make_measurement`.
        precision: See `make_measurement`.

    Returns:
        (replicated plain variables, see `Measurement.bake`; split; label in front of the progress
        bar) -> score. Every example of the split counts once.
    """
    if attack is not None and group is not None:
        attack = InGroups(attack, group)

    def count(variables: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits_fn = models.logits_fn(model, variables)
        clean, labels = to_unit(batch["images"]), batch["labels"]
        images, excess = clean, jnp.zeros(len(clean))
        if attack is not None:
            key = jax.random.key(seed)
            keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(batch["index"])
            images = attack(logits_fn, clean, labels, keys)
            excess = norms.excess(images, clean, attack.epsilon, norm_of(attack))
        logits = logits_fn(images)
        correct = ~is_wrong(logits, labels) & batch["valid"]
        classes = jax.nn.one_hot(labels, logits.shape[-1])
        counts = {
            "correct": correct @ classes,
            "examples": batch["valid"] @ classes,
            "not_finite": (~finite(logits) & batch["valid"]).sum(),
        }
        return {**parallel.total(counts), "excess": parallel.maximum(norms.largest(excess))}

    count_everywhere = parallel.parallel(count, devices, precision=precision)

    def accuracy(variables: Any, split: Split, label: str) -> Score:
        correct = examples = excess = not_finite = np.zeros(())
        for counts in _counts(count_everywhere, variables, split, label, batch_size, devices):
            correct, examples = correct + counts["correct"], examples + counts["examples"]
            excess = np.maximum(excess, counts["excess"])
            not_finite = not_finite + counts["not_finite"]
        return Score.of(correct, examples, float(excess), int(not_finite))

    return accuracy


def make_zero_gradients(
    model: Model,
    loss: str,
    *,
    batch_size: int,
    devices: Sequence[Device],
    precision: str | None = None,
) -> Share:
    """Builds a function that measures on how many images the gradient of a loss is zero.

    Args:
        model: The network.
        loss: Name of the loss, see `attacks.base.zero_gradients`.
        batch_size: Examples at once over all devices of all processes.
        devices: Local devices.
        precision: See `make_measurement`.

    Returns:
        The function; it compiles once.
    """

    def count(variables: Variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits_fn = models.logits_fn(model, variables)
        images, labels, valid = to_unit(batch["images"]), batch["labels"], batch["valid"]
        zero, _ = zero_gradients(loss, logits_fn, images, labels)
        return parallel.total({"zero": (zero & valid).sum(), "examples": valid.sum()})

    count_everywhere = parallel.parallel(count, devices, precision=precision)

    def share(variables: Any, split: Split, label: str) -> float:
        counts = _counts(count_everywhere, variables, split, label, batch_size, devices)
        return float(sum(each["zero"] for each in counts) / len(split))

    return share


def _counts(
    count: Callable[..., Any],
    variables: Any,
    split: Split,
    label: str,
    batch_size: int,
    devices: Sequence[Device],
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what a mapped function counts in each batch of a split, with a progress bar."""
    batches = eval_batches(
        split,
        batch_size=batch_size,
        devices=len(devices),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    with tqdm(total=len(split), desc=label, unit="img", leave=False, disable=None) as bar:
        for batch in parallel.prefetch(batches, devices):
            counts = parallel.to_host(count(variables, batch))
            bar.update(int(counts["examples"].sum()))
            yield counts
