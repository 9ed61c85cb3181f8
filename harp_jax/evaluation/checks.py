"""Finds reasons to doubt a measured robust accuracy: gradient masking, failed attacks, bad points.

It turns measurements into sentences for the reader of a report. The signs are those of Athalye et
al. (2018), of Carlini et al. (2019) and of AutoAttack's own checks.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from harp_jax.attacks import PGD, Attack
from harp_jax.attacks.base import Ensemble, Part, loss_at_start, norm_of
from harp_jax.attacks.objectives import FEWEST_CLASSES

CURVE = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)  # radii of the security curve, as multiples of epsilon

LARGEST_EXCESS = 1e-5  # on the [0, 1] scale; float32 rounding stays below 1e-6
ZERO_GRADIENTS = 0.1  # share of the images
LONG = 50  # steps of a PGD that should find about what APGD finds
WEAK_PGD = 0.02  # of accuracy, that long PGD may leave more than APGD

Row = Mapping[str, Any]


def warnings(row: Row, attacks: Mapping[str, Attack], classes: int) -> list[str]:
    """Returns the warnings about a row's robust accuracies.

    Args:
        row: A row as the evaluation of a run writes it. The entries 'robust', 'checks',
            'autoattack' and 'curve' are used; the last two are optional.
        attacks: The attacks, by name.
        classes: Number of classes.

    Returns:
        A sentence for each reason to doubt the accuracies; none if there is no reason.
    """
    sentences = of_points(row["checks"]["largest_excess"])
    for name, share in row["checks"].get("zero_gradients", {}).items():
        loss = loss_at_start(attacks[name])
        if loss is not None and not isinstance(attacks[name], Ensemble):
            sentences += _of_zero_gradients(name, loss, share)
    for name, found in row.get("autoattack", {}).items():
        attack = attacks[name]
        if isinstance(attack, Ensemble):
            parts = attack.parts()
            sentences += of_parts(name, found, parts, classes)
            sentences += _of_pgd(name, found["after"], row["robust"], attacks, parts)
    return sentences + _of_curve(row.get("curve", []))


def check_finite(count: int, images: int, where: str) -> None:
    """Refuses a network whose logits are not finite: its accuracy says nothing.

    Args:
        count: Number of images with such logits.
        images: Number of all images.
        where: The network and the attack.

    Raises:
        ValueError: If there are any.
    """
    if count:
        raise ValueError(
            f"{where}: the logits of {count} of {images} images are not finite; allowed are"
            " networks with finite logits"
        )


def of_points(excess: float | None) -> list[str]:
    """Checks that adversarial points lie in their ball and the box.

    Args:
        excess: Largest distance of a point outside its ball or the box; None or nan if it is not a
            number.
    """
    if excess is None or math.isnan(excess):
        return ["an adversarial image holds values that are no numbers"]
    if excess > LARGEST_EXCESS:
        return [f"an adversarial image is {excess:.2g} outside its ball or the range [0, 1]"]
    return []


def of_parts(
    name: str, found: Mapping[str, Any], parts: Mapping[str, Part], classes: int
) -> list[str]:
    """Returns the warnings that follow from comparing the parts of an attack.

    Args:
        name: Name of the attack.
        found: 'after' (accuracy after 'natural' and each part), 'images' (number of images),
            'zero_gradients' and 'deterministic', see `packed.Outcome`.
        parts: The parts, by name.
        classes: Number of classes.
    """
    sentences = _of_gradients(name, found["after"], found["images"], parts)
    losses = [loss for part in parts.values() if (loss := loss_at_start(part))]
    if losses:
        sentences += _of_zero_gradients(name, losses[0], found["zero_gradients"])
    if not found["deterministic"]:
        sentences.append(
            f"{name}: two forward passes differ; this version is for fixed networks only"
        )
    for part_name, part in parts.items():
        objective = getattr(part, "objective", "")
        if classes < FEWEST_CLASSES.get(objective, 0):
            sentences.append(
                f"{name}: {classes} classes are too few for the loss {objective!r} of {part_name}:"
                " it ascends the difference of two logits instead"
            )
    return sentences


def _of_zero_gradients(name: str, loss: str, share: float) -> list[str]:
    """Warns if a loss has a zero gradient on many clean images, see `zero_gradients`."""
    if share <= ZERO_GRADIENTS:
        return []
    return [
        f"{name}: the gradient of the loss {loss!r} is zero on {share:.0%} of the images:"
        " steps along it move none of them, so the accuracy may be too high"
    ]


def _of_gradients(
    name: str, after: Mapping[str, float], images: int, parts: Mapping[str, Part]
) -> list[str]:
    """Warns if parts without gradients broke images that earlier gradient attacks did not."""
    sentences, names = [], list(after)
    for place, part_name in enumerate(names[1:], start=1):
        part = parts[part_name]
        before = any(parts[other].uses_gradients for other in names[1:place])
        broken = round((after[names[place - 1]] - after[part_name]) * images)
        if before and not part.uses_gradients and broken > 0:
            sentences.append(
                f"{name}: {_kind(part)}, which uses no gradients, broke {broken} of {images} images"
                " that the attacks with gradients did not: the gradients may be masked"
            )
    return sentences


def _kind(part: Part) -> str:
    return type(getattr(part, "attack", part)).__name__


def _of_pgd(
    name: str,
    after: Mapping[str, float],
    robust: Mapping[str, float],
    attacks: Mapping[str, Attack],
    parts: Mapping[str, Part],
) -> list[str]:
    """Warns if a long PGD is much weaker than APGD on the same loss: its steps do not fit."""
    first = next(iter(parts))
    if getattr(parts[first], "objective", "") != "ce":
        return []
    return [
        f"{other}: leaves {accuracy - after[first]:.1%} more than the first part of {name}: its"
        " step size does not fit this network"
        for other, accuracy in robust.items()
        if isinstance(pgd := attacks[other], PGD)
        and pgd.steps >= LONG
        and (pgd.epsilon, pgd.norm) == (attacks[name].epsilon, norm_of(attacks[name]))
        and pgd.objective == "ce"
        and accuracy - after[first] > WEAK_PGD
    ]


def _of_curve(curve: Sequence[Mapping[str, float]]) -> list[str]:
    return [
        f"accuracy is higher at epsilon {larger['epsilon']:.4g} ({larger['robust']:.2%}) than at"
        f" {smaller['epsilon']:.4g} ({smaller['robust']:.2%}): the attack of the curve fails"
        for smaller, larger in itertools.pairwise(curve)
        if larger["robust"] > smaller["robust"]
    ]
