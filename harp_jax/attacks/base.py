"""Protocols of an attack and of a part of AutoAttack, and what all of them share.

An attack of your own is a frozen dataclass with a radius `epsilon` and the call of `Attack`. It
needs nothing else: `as_part` makes it a part of an evaluation.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from harp_jax.attacks import norms
from harp_jax.attacks.objectives import OBJECTIVES, is_wrong
from harp_jax.settings import check, check_name
from harp_jax.types import (
    ExampleKeys,
    Images,
    Labels,
    Logits,
    LogitsFn,
    Scalar,
    Selection,
)


@runtime_checkable
class Attack(Protocol):
    """An attack: a pure function whose settings are frozen fields.

    The optional field `norm` is the norm of `epsilon`, 'linf' (the default) or 'l2'.
    """

    @property
    def epsilon(self) -> float:
        """Radius of the ball, on the [0, 1] scale, >= 0."""
        ...

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch.

        Args:
            logits_fn: Network in inference mode: images in [0, 1] -> logits.
            images: Clean images.
            labels: True classes.
            key: One key, or one per example, so that its noise does not depend on the batch.

        Returns:
            Adversarial images in [0, 1], within the attack's ball around `images`.
        """
        ...


class Task(NamedTuple):
    """One round of a part on a batch.

    Attributes:
        logits_fn: Network in inference mode: images in [0, 1] -> logits.
        images: Clean images.
        labels: True classes.
        keys: One key per example, the same in every round of a part.
        number: Number of the round, in [0, rounds). It may be traced, so that one program serves
            all rounds.
    """

    logits_fn: LogitsFn
    images: Images
    labels: Labels
    keys: Key[Array, " batch"]
    number: Int[Array, ""] | int


class State(NamedTuple):
    """State of a round, per example.

    Attributes:
        adversarial: Best points so far, within the part's ball.
        done: Whether the round is over.
        memory: Other arrays that the next `advance` needs, by name; first axis: examples.
    """

    adversarial: Images
    done: Selection
    memory: Mapping[str, Array]


@runtime_checkable
class Part(Attack, Protocol):
    """An attack that can be part of a sequence, on packed batches.

    It has a number of `rounds`. Between rounds, examples that are still robust are packed into new
    batches. A round calls `start`, then `advance` until `State.done` holds for all examples. All
    rounds together, each on the examples that are still robust, break exactly the examples that a
    direct call of the attack breaks.
    """

    @property
    def uses_gradients(self) -> bool:
        """Whether the attack differentiates the network."""
        ...

    @property
    def in_pieces(self) -> bool:
        """Whether a round takes several calls of `advance`.

        If so, examples at different points of their round share a batch. Otherwise the first call
        ends the round for all examples.
        """
        ...

    def rounds(self, classes: int) -> int:
        """Returns the number of rounds, >= 1, against a network with `classes` classes."""
        ...

    def start(self, task: Task) -> State:
        """Returns the state before the first call of `advance`."""
        ...

    def advance(self, task: Task, state: State) -> State:
        """Continues a round; examples that are done do not change."""
        ...


@runtime_checkable
class Ensemble(Attack, Protocol):
    """An attack of several parts, each on the examples that are still robust."""

    def parts(self) -> dict[str, Part]:
        """Returns the parts in order, by the names used in reports."""
        ...


@dataclasses.dataclass(frozen=True)
class WholeAttack:
    """Any attack as a part of one round, which is one call.

    Attributes:
        attack: The attack.
    """

    attack: Attack
    in_pieces = False

    @property
    def epsilon(self) -> float:
        """Radius of the attack."""
        return self.attack.epsilon

    @property
    def norm(self) -> str:
        """Norm of the attack."""
        return norm_of(self.attack)

    @property
    def objective(self) -> Any:
        """The attack's field `objective`; 'ce' if it has none."""
        return getattr(self.attack, "objective", "ce")

    @property
    def uses_gradients(self) -> bool:
        """The attack's field `uses_gradients`; True if it has none."""
        return getattr(self.attack, "uses_gradients", True)

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`."""
        return self.attack(logits_fn, images, labels, key)

    def rounds(self, classes: int) -> int:
        """Returns 1."""
        del classes
        return 1

    def start(self, task: Task) -> State:
        """Returns the clean images as state."""
        return untouched(task)

    def advance(self, task: Task, state: State) -> State:
        """Runs the whole attack."""
        del state
        return finished(self.attack(task.logits_fn, task.images, task.labels, task.keys))


def as_part(attack: Attack) -> Part:
    """Returns the attack itself if it is a part, else a part of one round."""
    return attack if isinstance(attack, Part) else WholeAttack(attack)


def norm_of(attack: Attack) -> str:
    """Returns the norm of an attack's ball: its field `norm`, or 'linf' if it has none."""
    return getattr(attack, "norm", "linf")


def loss_at_start(attack: Attack) -> str | None:
    """Returns the name of the loss that an attack ascends from the clean images.

    It is its field `objective` if that is one of `OBJECTIVES`, else 'ce'. 'dlr' stands for the
    targeted loss, which has one gradient a target.

    Returns:
        A name of `UNTARGETED`; None for an attack that uses no gradients.
    """
    if not getattr(attack, "uses_gradients", True):
        return None
    name = getattr(attack, "objective", "ce")
    if not isinstance(name, str) or name not in OBJECTIVES:
        return "ce"
    return {"dlr_targeted": "dlr"}.get(name, name)


def zero_gradients(
    loss: str, logits_fn: LogitsFn, images: Images, labels: Labels
) -> tuple[Selection, Logits]:
    """Finds the images at which the gradient of a loss is exactly zero.

    An attack that ascends this loss sees nothing there. In float32 the gradient of the
    cross-entropy is zero where the label's logit is about 100 above all others.

    Args:
        loss: A name of `UNTARGETED`.
        logits_fn: Images in [0, 1] -> logits.
        images: Clean images.
        labels: True classes.

    Returns:
        The flags, and the logits. NaN in a gradient counts as zero: it moves no pixel.
    """

    def total(images: Images) -> tuple[Scalar, Logits]:
        logits = logits_fn(images)
        return OBJECTIVES[loss](logits, labels).sum(), logits

    gradient, logits = jax.grad(total, has_aux=True)(images)
    return (jnp.nan_to_num(gradient) == 0).all((1, 2, 3)), logits


def untouched(task: Task) -> State:
    """Returns the clean images as state; misclassified ones are done."""
    return State(task.images, misclassified(task.logits_fn, task.images, task.labels), {})


def finished(adversarial: Images) -> State:
    """Returns the state at the end of a round."""
    return State(adversarial, jnp.ones(len(adversarial), bool), {})


def misclassified(logits_fn: LogitsFn, images: Images, labels: Labels) -> Selection:
    """Returns flags of the images whose predicted class is not their label, see `is_wrong`."""
    return is_wrong(logits_fn(images), labels)


def check_settings(attack: Any, *counts: str) -> None:
    """Checks radius, norm and counts of an attack, in its `__post_init__`.

    Args:
        attack: Attack with the fields 'epsilon', 'norm' and `counts`.
        *counts: Names of fields that must be whole numbers >= 1.

    Raises:
        ValueError: If a field is out of range; names it, its value and the allowed values.
    """
    check(attack, "epsilon", 0 <= attack.epsilon < math.inf, "finite numbers >= 0")
    check_name(attack, "norm", norms.NORMS)
    for field in counts:
        check(attack, field, getattr(attack, field) >= 1, "whole numbers >= 1")
