"""The protocols that attacks fit, and an attack of one's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sign_attack import Sign
from test_battery import ATTACKS, IMAGES, KEYS, LABELS, NETWORK, PREDICTED

from harp_jax import attacks
from harp_jax.attacks import base

TASK = base.Task(NETWORK, IMAGES, LABELS, KEYS, 0)


@pytest.mark.parametrize("attack", [*ATTACKS.values(), Sign(0.1)], ids=repr)
def test_any_attack_is_a_part(attack):
    part = base.as_part(attack)
    assert isinstance(part, base.Part)
    assert (part is attack) == isinstance(attack, attacks.APGD | attacks.FAB | attacks.Square)
    assert part.epsilon == attack.epsilon
    assert base.norm_of(part) == getattr(attack, "norm", "linf")
    assert part.rounds(10) >= 1


def test_a_whole_attack_is_one_round():
    part = base.as_part(Sign(0.1))
    start = part.start(TASK)
    np.testing.assert_array_equal(start.adversarial, IMAGES)
    np.testing.assert_array_equal(start.done, NETWORK(IMAGES).argmax(-1) != LABELS)
    end = part.advance(TASK, start)
    assert end.done.all()
    np.testing.assert_array_equal(end.adversarial, Sign(0.1)(NETWORK, IMAGES, LABELS, KEYS))
    assert (part.rounds(10), part.in_pieces, part.uses_gradients) == (1, False, True)
    assert not base.as_part(dataclasses.replace(Sign(0.1), uses_gradients=False)).uses_gradients


def test_only_autoattack_is_an_ensemble():
    found = {name for name, attack in ATTACKS.items() if isinstance(attack, base.Ensemble)}
    assert found == {"AutoAttack"}


def test_what_is_misclassified():
    logits_fn = lambda images: jnp.eye(3)  # noqa: E731
    wrong = base.misclassified(logits_fn, IMAGES[:3], jnp.array([0, 2, 2]))
    np.testing.assert_array_equal(wrong, [False, True, False])


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epsilon", -1.0, "finite numbers >= 0"),
        ("epsilon", float("inf"), "finite numbers >= 0"),
        ("norm", "l1", "linf, l2"),
        ("steps", 0, "whole numbers >= 1"),
    ],
)
def test_shared_settings_are_checked(field, value, allowed):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        epsilon: float = 0.1
        norm: str = "linf"
        steps: int = 1

    base.check_settings(Settings(), "steps")
    with pytest.raises(ValueError, match=f"^{field}={value!r}: allowed are {allowed}$"):
        base.check_settings(Settings(**{field: value}), "steps")


def test_keys_are_the_same_for_every_round():
    """A part folds the number in itself, so that a call and its rounds draw the same."""
    attack = attacks.APGD(0.1, steps=3, restarts=2)
    run = jax.jit(lambda number: attack.advance(TASK._replace(number=number), attack.start(TASK)))
    first, second = (run(number).adversarial for number in range(2))
    assert not np.array_equal(first, second)


def test_the_loss_at_the_start():
    wanted = {
        "FGSM": "ce",
        "PGD, L2, margin, 3 restarts": "margin",
        "CW": "margin",
        "APGD, L2, dlr": "dlr",
        "APGD-T": "dlr",
        "FAB": "margin",
        "Square": None,
    }
    assert {name: base.loss_at_start(ATTACKS[name]) for name in wanted} == wanted
    assert base.loss_at_start(base.as_part(ATTACKS["CW"])) == "margin"
    assert base.loss_at_start(base.as_part(Sign(0.1))) == "ce"
    assert base.loss_at_start(dataclasses.replace(Sign(0.1), uses_gradients=False)) is None


@pytest.mark.parametrize(("loss", "blind"), [("ce", True), ("margin", False), ("dlr", False)])
def test_zero_gradients_of_large_logits(loss, blind):
    zero, logits = base.zero_gradients(loss, NETWORK, IMAGES, PREDICTED)
    np.testing.assert_array_equal(logits, NETWORK(IMAGES))
    assert not zero.any()
    zero, _ = base.zero_gradients(loss, lambda x: 1e5 * NETWORK(x), IMAGES, PREDICTED)
    assert zero.mean() > 0.9 if blind else not zero.any()


def test_a_gradient_that_is_no_number_counts_as_zero():
    """It moves no pixel, see `norms.ascend`."""
    zero, _ = base.zero_gradients("ce", lambda x: NETWORK(x * jnp.nan), IMAGES, LABELS)
    assert zero.all()


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_logits_that_are_not_finite_are_wrong_for_every_attack(attack, value):
    """Those of label 0 too, the class that `argmax` finds."""
    labels = jnp.zeros(4, jnp.int32)
    none = lambda images: NETWORK(images).at[:, 1].set(value)  # noqa: E731
    assert base.misclassified(none, IMAGES[:4], labels).all()
    part = base.as_part(attack)
    if isinstance(attack, base.Ensemble):
        parts = attack.parts().values()
    else:
        parts = [part]
    for part in parts:
        assert part.start(base.Task(none, IMAGES[:4], labels, KEYS[:4], 0)).done.all()
