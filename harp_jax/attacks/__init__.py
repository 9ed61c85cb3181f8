"""Adversarial attacks: frozen dataclasses called as `attack(logits_fn, images, labels, key)`.

One file per attack; `base` has the protocols. A new attack is a file and a row in `ATTACKS`, or a
class of your own. Pure functions of a network, images and a key. `losses` and the rooms above it
may import this one.
"""

from typing import Any

from harp_jax.attacks.apgd import APGD
from harp_jax.attacks.autoattack import AutoAttack
from harp_jax.attacks.base import Attack
from harp_jax.attacks.fab import FAB
from harp_jax.attacks.fmn import FMN, security_curve
from harp_jax.attacks.pgd import CW, FGSM, PGD
from harp_jax.attacks.square import Square

ATTACKS: dict[str, Any] = {
    "FGSM": FGSM,
    "PGD": PGD,
    "CW": CW,
    "APGD": APGD,
    "FAB": FAB,
    "Square": Square,
    "AutoAttack": AutoAttack,
}

__all__ = [
    "APGD",
    "ATTACKS",
    "CW",
    "FAB",
    "FGSM",
    "FMN",
    "PGD",
    "Attack",
    "AutoAttack",
    "Square",
    "security_curve",
]
