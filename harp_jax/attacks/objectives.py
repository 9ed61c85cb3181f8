"""What attacks ascend: losses per example, larger the nearer an example is to being misclassified.

All are functions of the logits' static number of classes, 2 or more, and of one example at a time.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from harp_jax.types import Labels, Logits, PerExample

# Keeps the ratios finite where all logits are equal.
_TINY = 1e-12


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Cross-entropy with the true classes, >= 0."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: Logits, labels: Labels) -> PerExample:
    """Largest wrong logit minus the true one: positive where the example is misclassified."""
    true = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    return jnp.where(true, -jnp.inf, logits).max(-1) - _logit(logits, labels)


def dlr(logits: Logits, labels: Labels) -> PerExample:
    """Difference of logits ratio (Croce & Hein, 2020, eq. 6): margin / (z_pi1 - z_pi3).

    z_pi1 >= z_pi2 >= z_pi3 are the sorted logits. The ratio does not change when the logits are
    shifted or scaled. Two logits have no such ratio other than the constants 1 and -1; with two
    classes it is therefore the margin, which a scale multiplies but which gives a steepest ascent
    the same directions, and an example's points the same order, at every scale.
    """
    if logits.shape[-1] < FEWEST_CLASSES["dlr"]:
        return margin(logits, labels)
    first, _, third = _largest(logits, 3)
    return margin(logits, labels) / (first - third + _TINY)


def dlr_targeted(logits: Logits, labels: Labels, targets: Labels) -> PerExample:
    """Targeted DLR (eq. 7): (z_target - z_label) / (z_pi1 - (z_pi3 + z_pi4) / 2).

    It is positive only where the example is misclassified. With fewer than four classes it is the
    difference alone, for the reason given at `dlr`; with z_pi3 for the missing z_pi4 the ratio
    would be the constant -1 wherever the true class is the first of three and the target the last.

    Args:
        logits: Of the adversarial images.
        labels: True classes.
        targets: The wrong classes to reach.

    Returns:
        The loss of each example.
    """
    difference = _logit(logits, targets) - _logit(logits, labels)
    if logits.shape[-1] < FEWEST_CLASSES["dlr_targeted"]:
        return difference
    first, _, third, fourth = _largest(logits, 4)
    return difference / (first - 0.5 * (third + fourth) + _TINY)


def wrong_class(logits: Logits, labels: Labels, rank: Labels | Int[Array, ""] | int) -> Labels:
    """The wrong class of rank `rank`, counted from 0 at the most likely one.

    Args:
        logits: Usually those of the clean images.
        labels: True classes.
        rank: In [0, classes - 2], one for all examples or one each; may be traced.

    Returns:
        A class other than the label for each example; of equal logits, the lower class first.
    """
    true = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    order = jnp.argsort(jnp.where(true, -jnp.inf, logits), axis=-1, descending=True)
    rank = jnp.broadcast_to(jnp.asarray(rank), labels.shape)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]


# The untargeted ones, (logits, labels) -> [batch], and the targeted, which takes targets too.
OBJECTIVES: dict[str, Callable[..., PerExample]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "dlr_targeted": dlr_targeted,
}
UNTARGETED = ("ce", "margin", "dlr")
# With fewer classes these are a difference of two logits.
FEWEST_CLASSES = {"dlr": 3, "dlr_targeted": 4}


def _logit(logits: Logits, classes: Labels) -> PerExample:
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _largest(logits: Logits, count: int) -> tuple[PerExample, ...]:
    values, _ = lax.top_k(logits, count)
    return tuple(values[:, place] for place in range(count))
