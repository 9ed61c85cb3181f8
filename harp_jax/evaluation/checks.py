"""What speaks against a measured robust accuracy: gradient masking, attacks that fail, bad points.

A row of results.json goes in, sentences for its reader come out. The signs are those of Athalye et
al. (2018), Carlini et al. (2019) and of AutoAttack's own checks.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

CURVE = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)  # radii of the security curve, as multiples of epsilon

LARGEST_EXCESS = 1e-5  # on the [0, 1] scale; float32 rounding stays below 1e-6
ZERO_GRADIENTS = 0.1  # share of the images
WEAK_PGD = 0.02  # of accuracy, that long PGD may leave more than APGD

Row = Mapping[str, Any]


def warnings(row: Row, attacks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of a row's robust accuracies has to know.

    Args:
        row: 'robust', 'checks' and, where there are any, 'autoattack' and 'curve', as `evaluate`
            writes them.
        attacks: Settings of the attacks, by name.

    Returns:
        A sentence for each doubt; none if there is no doubt.
    """
    said = _of_points(row["checks"])
    for name, found in row.get("autoattack", {}).items():
        said += _of_autoattack(name, found)
        said += _of_pgd(name, found, row["robust"], attacks)
    return said + _of_curve(row.get("curve", []))


def _of_points(checks: Mapping[str, Any]) -> list[str]:
    excess = checks["largest_excess"]
    if excess is None:
        return ["an adversarial image holds values that are no numbers"]
    if excess > LARGEST_EXCESS:
        return [f"an adversarial image is {excess:.2g} outside its ball or the range [0, 1]"]
    return []


def _of_autoattack(name: str, found: Mapping[str, Any]) -> list[str]:
    said = []
    after, images = list(found["after"].values()), found["images"]
    by_square = round((after[-2] - after[-1]) * images)
    if by_square > 0:
        said.append(
            f"{name}: Square, which uses no gradients, broke {by_square} of {images} images that"
            " the attacks with gradients did not: the gradients may be masked"
        )
    if found["zero_gradients"] > ZERO_GRADIENTS:
        said.append(
            f"{name}: the gradient is zero on {found['zero_gradients']:.0%} of the images: attacks"
            " with gradients see little"
        )
    if not found["deterministic"]:
        said.append(f"{name}: two forward passes differ; this version is for fixed networks only")
    return said


def _of_pgd(
    name: str,
    found: Mapping[str, Any],
    robust: Mapping[str, float],
    attacks: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Where a long PGD is much weaker than APGD on the same loss, its steps do not fit the loss."""
    apgd = found["after"]["apgd-ce"]
    return [
        f"{other}: leaves {accuracy - apgd:.1%} more than the first part of {name}: its step size"
        " does not fit this network"
        for other, accuracy in robust.items()
        if attacks[other]["type"] == "PGD"
        and attacks[other].get("steps", 0) >= 50
        and attacks[other]["epsilon"] == attacks[name]["epsilon"]
        and accuracy - apgd > WEAK_PGD
    ]


def _of_curve(curve: Sequence[Mapping[str, float]]) -> list[str]:
    return [
        f"accuracy is higher at epsilon {larger['epsilon']:.4g} ({larger['robust']:.2%}) than at"
        f" {smaller['epsilon']:.4g} ({smaller['robust']:.2%}): the attack of the curve fails"
        for smaller, larger in itertools.pairwise(curve)
        if larger["robust"] > smaller["robust"]
    ]
