"""Adversarial attacks: frozen dataclasses called as `attack(logits_fn, images, labels, key)`."""

from typing import Any

from harp_jax.attacks.pgd import FGSM, PGD, Attack

ATTACKS: dict[str, Any] = {"FGSM": FGSM, "PGD": PGD}

__all__ = ["ATTACKS", "FGSM", "PGD", "Attack"]
