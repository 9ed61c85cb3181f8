"""Checks the arguments of `evaluate` and converts them for the programs."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from harp_jax.attacks import Attack, AutoAttack
from harp_jax.attacks.base import Ensemble, Part, as_part, norm_of
from harp_jax.attacks.norms import NORMS
from harp_jax.evaluation.packed import NATURAL

AUTOATTACK = "autoattack"  # another name of the standard version
Chosen = str | Attack


class Given(NamedTuple):
    """Examples in memory.

    Attributes:
        images: [N, H, W, C], uint8, or float32 in [0, 1].
        labels: Int32 [N].
    """

    images: np.ndarray
    labels: np.ndarray


def examples(images: Any, labels: Any) -> Given:
    """Converts images and labels of any array type.

    Raises:
        ValueError: For shapes or types that do not fit, or pixels outside [0, 1].
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(
            f"images: of shape {images.shape}; allowed are [N, height, width, channels], none of"
            " them 0"
        )
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels: of shape {labels.shape}; allowed are [{len(images)}], one an image"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels: of type {labels.dtype}; allowed are whole numbers")
    if images.dtype != np.uint8:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images: of type {images.dtype}; allowed are uint8 and floating point"
            )
        images = images.astype(np.float32)
        if not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"images: from {images.min():.4g} to {images.max():.4g}; allowed are floating-point"
                " pixels in [0, 1], and uint8"
            )
    limits = np.iinfo(np.int32)
    return Given(images, labels.clip(limits.min, limits.max).astype(np.int32))


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises a ValueError for labels that are not classes."""
    if not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(
            f"labels: from {labels.min()} to {labels.max()}; allowed are 0 to {classes - 1},"
            f" logits_fn gives {classes} logits"
        )


def fitting_batch(batch_size: int, examples: int, devices: int) -> int:
    """Returns the batch size, limited to the number of examples; a multiple of the devices.

    Raises:
        ValueError: If the given batch size is not such a multiple.
    """
    if batch_size < 1 or batch_size % devices:
        raise ValueError(f"batch_size={batch_size}: allowed are multiples of the {devices} devices")
    return min(batch_size, -(-examples // devices) * devices)


def named_attacks(
    attacks: Chosen | Sequence[Chosen] | Mapping[str, Chosen],
    epsilon: float | None,
    norm: str | None,
) -> dict[str, Attack]:
    """Returns the attacks by name, in order.

    Args:
        attacks: Names of AutoAttack's versions, and attacks; see `evaluate`.
        epsilon: Radius of attacks given by name; None if there are none.
        norm: Norm of attacks given by name; None for 'linf'.

    Returns:
        Attacks by name; an attack without a name has the name of its type.

    Raises:
        ValueError: For an unknown name, an object that is not an attack, and a radius that is
            missing, not used, or above 1 in the L_inf norm.
    """
    entries = _entries(attacks)
    if not entries:
        raise ValueError("attacks: none; allowed are one or more")
    by_name = [value for _, value in entries if isinstance(value, str)]
    if by_name and epsilon is None:
        raise ValueError(f"epsilon=None: allowed are numbers >= 0, the radius of {by_name[0]!r}")
    if epsilon is not None and not isinstance(epsilon, numbers.Real):
        raise ValueError(f"epsilon={epsilon!r}: allowed are numbers >= 0")
    if epsilon is not None and norm in (None, "linf") and epsilon > 1:
        meant = f"did you mean {epsilon}/255 = {epsilon / 255:.4g}? " if epsilon <= 255 else ""
        raise ValueError(
            f"epsilon={epsilon}: in units of [0, 1]; {meant}allowed are numbers in [0, 1]"
        )
    for name, value in entries:
        if name == NATURAL:
            raise ValueError(f"attacks[{name!r}]: allowed are other names, it stands for no attack")
        if not isinstance(value, str):
            _check(value, name)
    if not by_name and (epsilon, norm) != (None, None):
        raise ValueError(
            f"epsilon={epsilon!r}, norm={norm!r}: allowed are None with attacks that have their own"
        )
    chosen: dict[str, Attack] = {}
    for name, value in entries:
        if isinstance(value, str):
            chosen[name] = _version(value, epsilon, norm or "linf")
        else:
            chosen[name] = value
    return chosen


def parts(attacks: Mapping[str, Attack]) -> dict[str, Part]:
    """Returns all parts of the attacks in order, by name.

    Parts keep their names if there is one attack; with several, names are 'attack/part'.
    """
    found: dict[str, Part] = {}
    for name, attack in attacks.items():
        if isinstance(attack, Ensemble):
            prefix = f"{name}/" if len(attacks) > 1 else ""
            found |= {prefix + part: each for part, each in attack.parts().items()}
        else:
            found[name] = as_part(attack)
    return found


def _entries(attacks: Any) -> list[tuple[str, Any]]:
    if isinstance(attacks, Mapping):
        return list(attacks.items())
    alone = isinstance(attacks, str) or not isinstance(attacks, Sequence)
    entries: dict[str, Any] = {}
    for value in [attacks] if alone else attacks:
        kind = value if isinstance(value, str) else type(value).__name__
        name, number = kind, 2
        while name in entries:
            name, number = f"{kind}-{number}", number + 1
        entries[name] = value
    return list(entries.items())


def _version(name: str, epsilon: float | None, norm: str) -> AutoAttack:
    version = "standard" if name == AUTOATTACK else name
    assert epsilon is not None
    try:
        return AutoAttack(epsilon, norm, version)
    except ValueError as error:
        if not str(error).startswith("version="):
            raise
        allowed = str(error).partition(": allowed are ")[2]
        raise ValueError(
            f"attacks={name!r}: allowed are {AUTOATTACK}, {allowed}, and objects of"
            " harp_jax.attacks, as PGD(...)"
        ) from None


def _check(attack: Any, name: str) -> None:
    settings = getattr(attack, "__dataclass_params__", None)
    if isinstance(attack, type) or not (
        settings and settings.frozen and isinstance(attack, Attack)
    ):
        raise ValueError(
            f"attacks[{name!r}]={attack!r}: allowed are frozen dataclasses with epsilon and a call"
            " (logits_fn, images, labels, key), and names of AutoAttack's versions"
        )
    if norm_of(attack) not in NORMS:
        raise ValueError(
            f"attacks[{name!r}].norm={norm_of(attack)!r}: allowed are {', '.join(NORMS)}"
        )
