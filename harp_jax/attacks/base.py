"""What an attack is, what a part of AutoAttack is, and the settings that attacks share.

An attack of one's own is a frozen dataclass with a radius `epsilon` and the call of `Attack`. It
needs nothing else: in an evaluation it is one part like any other (see `as_part`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from harp_jax.attacks import norms
from harp_jax.settings import check
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn, Selection


@runtime_checkable
class Attack(Protocol):
    """A pure function with its settings as frozen fields.

    A field `norm` ('linf' or 'l2') says in which norm `epsilon` is; without it, it is 'linf'.
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
            logits_fn: Images in [0, 1] -> logits; a network in inference mode.
            images: Clean images.
            labels: True classes.
            key: One key, or one per example (then an example's noise does not depend on the batch).

        Returns:
            Adversarial images in [0, 1] within the attack's ball around `images`.
        """
        ...


class Task(NamedTuple):
    """One round of a part on a batch.

    Attributes:
        logits_fn: Images in [0, 1] -> logits; a network in inference mode.
        images: Clean images.
        labels: True classes.
        keys: One per example, the same in every round of a part.
        number: Of the round, in [0, rounds); it may be traced, one program then serves all rounds.
    """

    logits_fn: LogitsFn
    images: Images
    labels: Labels
    keys: Key[Array, " batch"]
    number: Int[Array, ""] | int


class State(NamedTuple):
    """How far a round is, per example.

    Attributes:
        adversarial: Best points so far, within the part's ball.
        done: Whether the round is over.
        memory: What else the next `advance` needs, arrays by name with a first axis of examples.
    """

    adversarial: Images
    done: Selection
    memory: Mapping[str, Array]


@runtime_checkable
class Part(Attack, Protocol):
    """An attack that can be one of several in a row, on packed batches.

    It goes through `rounds`; examples that are still robust are packed anew between them. A round
    is `start`, then `advance` until `State.done` holds for all examples. The rounds in their order,
    each on the examples that those before did not break, break exactly what a call breaks.
    """

    @property
    def uses_gradients(self) -> bool:
        """Whether it differentiates the network."""
        ...

    @property
    def in_pieces(self) -> bool:
        """Whether a round takes several calls of `advance`.

        Examples at different places of their round then share a batch. Otherwise the first call
        ends the round for all.
        """
        ...

    def rounds(self, classes: int) -> int:
        """Number of rounds against a network with so many classes, >= 1."""
        ...

    def start(self, task: Task) -> State:
        """The state before the first call of `advance`."""
        ...

    def advance(self, task: Task, state: State) -> State:
        """The state after some more work; examples that are done stay as they are."""
        ...


@runtime_checkable
class Ensemble(Attack, Protocol):
    """An attack that is several parts in a row, each on what those before left."""

    def parts(self) -> dict[str, Part]:
        """The parts in their order, by the names under which they are reported."""
        ...


@dataclasses.dataclass(frozen=True)
class WholeAttack:
    """Any attack as a part: one round, one call.

    Attributes:
        attack: The attack.
    """

    attack: Attack
    in_pieces = False

    @property
    def epsilon(self) -> float:
        """The attack's."""
        return self.attack.epsilon

    @property
    def norm(self) -> str:
        """The attack's."""
        return norm_of(self.attack)

    @property
    def uses_gradients(self) -> bool:
        """What the attack says of itself, else True."""
        return getattr(self.attack, "uses_gradients", True)

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`."""
        return self.attack(logits_fn, images, labels, key)

    def rounds(self, classes: int) -> int:
        """One."""
        del classes
        return 1

    def start(self, task: Task) -> State:
        """The clean images."""
        return untouched(task)

    def advance(self, task: Task, state: State) -> State:
        """The whole attack."""
        del state
        return finished(self.attack(task.logits_fn, task.images, task.labels, task.keys))


def as_part(attack: Attack) -> Part:
    """The attack itself if it is a part, else a part of one round."""
    return attack if isinstance(attack, Part) else WholeAttack(attack)


def norm_of(attack: Attack) -> str:
    """The norm of an attack's ball: its field `norm`, or 'linf' if it has none."""
    return getattr(attack, "norm", "linf")


def untouched(task: Task) -> State:
    """The clean images, done where they are misclassified."""
    return State(task.images, misclassified(task.logits_fn, task.images, task.labels), {})


def finished(adversarial: Images) -> State:
    """The end of a round for all examples."""
    return State(adversarial, jnp.ones(len(adversarial), bool), {})


def misclassified(logits_fn: LogitsFn, images: Images, labels: Labels) -> Selection:
    """Which images are not given their label."""
    return logits_fn(images).argmax(-1) != labels


def check_settings(attack: Any, *counts: str) -> None:
    """Refuses a radius, a norm or a count out of range; for an attack's `__post_init__`.

    Args:
        attack: Has the fields 'epsilon', 'norm' and `counts`.
        counts: Names of fields that are whole numbers >= 1.

    Raises:
        ValueError: Names the field, its value and what is allowed.
    """
    check(attack, "epsilon", attack.epsilon >= 0, "numbers >= 0")
    check(attack, "norm", attack.norm in norms.NORMS, ", ".join(norms.NORMS))
    for field in counts:
        check(attack, field, getattr(attack, field) >= 1, "whole numbers >= 1")
