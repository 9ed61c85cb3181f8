"""Losses that attacks maximise, per example: they grow as an example gets closer to an error.

Each depends on one example at a time. The number of classes is static, 2 or more.
"""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from harp_jax.types import Labels, Logits, PerExample, Selection

# Keeps the ratios finite if all logits are equal.
_TINY = 1e-12


def finite(logits: Logits) -> Selection:
    """Returns flags of the examples whose logits are all finite."""
    return jnp.isfinite(logits).all(-1)


def is_wrong(logits: Logits, labels: Labels) -> Selection:
    """Returns flags of the examples whose predicted class is not their label.

    Logits that are not all finite predict no class. (Of NaN, `argmax` finds the first.)
    """
    return (logits.argmax(-1) != labels) | ~finite(logits)


def cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Computes the cross-entropy with the true classes, >= 0."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: Logits, labels: Labels) -> PerExample:
    """Computes the largest wrong logit minus the true one; positive if misclassified."""
    true = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    return jnp.where(true, -jnp.inf, logits).max(-1) - _logit(logits, labels)


def dlr(logits: Logits, labels: Labels) -> PerExample:
    """Computes the difference of logits ratio (Croce & Hein, 2020, eq. 6).

    It is margin / (z_pi1 - z_pi3), with the sorted logits z_pi1 >= z_pi2 >= z_pi3. Shifting or
    scaling the logits does not change it. With two classes any such ratio is the constant 1 or -1,
    so the result is the margin. Scaling the logits multiplies the margin, but changes neither the
    direction of steepest ascent nor the order of an example's points.
    """
    if logits.shape[-1] < FEWEST_CLASSES["dlr"]:
        return margin(logits, labels)
    first, _, third = _largest(logits, 3)
    return margin(logits, labels) / (first - third + _TINY)


def dlr_targeted(logits: Logits, labels: Labels, targets: Labels) -> PerExample:
    """Computes the targeted DLR loss (Croce & Hein, 2020, eq. 7).

    It is (z_target - z_label) / (z_pi1 - (z_pi3 + z_pi4) / 2), and positive only if the example is
    misclassified. With fewer than four classes it is the numerator alone, for the reason given at
    `dlr`: with three classes and z_pi3 in place of z_pi4, the ratio would be the constant -1
    whenever the true class ranks first and the target last.

    Args:
        logits: Logits of the adversarial images.
        labels: True classes.
        targets: Target classes, different from the labels.

    Returns:
        The loss of each example.
    """
    difference = _logit(logits, targets) - _logit(logits, labels)
    if logits.shape[-1] < FEWEST_CLASSES["dlr_targeted"]:
        return difference
    first, _, third, fourth = _largest(logits, 4)
    return difference / (first - 0.5 * (third + fourth) + _TINY)


def wrong_class(logits: Logits, labels: Labels, rank: Labels | Int[Array, ""] | int) -> Labels:
    """Returns the wrong class of a given rank; rank 0 is the most likely one.

    Args:
        logits: Logits, usually of the clean images.
        labels: True classes.
        rank: Rank in [0, classes - 2], one for all examples or one per example; may be traced.

    Returns:
        A class other than the label, per example. Of equal logits the lower class comes first.
    """
    true = jnp.arange(logits.shape[-1])[None] == labels[:, None]
    order = jnp.argsort(jnp.where(true, -jnp.inf, logits), axis=-1, descending=True)
    rank = jnp.broadcast_to(jnp.asarray(rank), labels.shape)
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]


# Untargeted: (logits, labels) -> [batch]. The targeted loss also takes targets.
OBJECTIVES: dict[str, Callable[..., PerExample]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "dlr_targeted": dlr_targeted,
}
UNTARGETED = ("ce", "margin", "dlr")
# With fewer classes these losses are a difference of two logits.
FEWEST_CLASSES = {"dlr": 3, "dlr_targeted": 4}


def _logit(logits: Logits, classes: Labels) -> PerExample:
    return jnp.take_along_axis(logits, classes[:, None], axis=-1)[:, 0]


def _largest(logits: Logits, count: int) -> tuple[PerExample, ...]:
    values, _ = lax.top_k(logits, count)
    return tuple(values[:, place] for place in range(count))
