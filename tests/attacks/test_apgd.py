"""What is APGD's alone: its checkpoints, its step sizes, its targets, its settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_battery import ATTACKS, IMAGES, KEYS, LABELS, NETWORK, PREDICTED, attacked

from harp_jax import attacks
from harp_jax.attacks import apgd
from harp_jax.attacks.base import Task
from harp_jax.attacks.objectives import cross_entropy


def test_checkpoints_of_100_steps_are_those_of_the_paper():
    allowed = apgd._allowed_increases(100, 0.75)
    places = np.flatnonzero(allowed >= 0)
    np.testing.assert_array_equal(places, [0, 22, 41, 57, 70, 80, 87, 93, 99])
    # At most 75 % of the steps since the checkpoint before, rounded down.
    np.testing.assert_array_equal(allowed[places], [0, 16, 14, 12, 9, 7, 5, 4, 4])


def test_a_single_step_is_checked_too():
    np.testing.assert_array_equal(apgd._allowed_increases(1, 0.75), [0, 0])


def checked(loss, *, halved, increases, allowed, checked_loss):
    """A state of one example after `_checked`: best loss 1.0 at 7.0, now at 3.0."""
    images = jnp.zeros((1, 1, 1, 1))
    one = jnp.ones(1)
    start = apgd.Found(images, jnp.zeros(1, bool), one)
    state = apgd._first_state(images, start, 0.5)._replace(
        step=jnp.int32(5),
        x=images + 3.0,
        loss=loss * one,
        best_x=images + 7.0,
        best_loss=one,
        halved=jnp.asarray([halved]),
        increases=jnp.asarray([increases]),
        checked_loss=checked_loss * one,
    )
    return apgd._checked(state, jnp.int32(allowed))


@pytest.mark.parametrize(
    ("increases", "checked_loss", "halved", "halves"),
    [
        (4, 0.5, False, False),  # the loss grew often, and its best value too
        (3, 0.5, False, True),  # not often enough
        (4, 1.0, False, True),  # no better than at the last checkpoint, with the same step
        (4, 1.0, True, False),  # ... which was halved there, so it gets another chance
    ],
)
def test_both_conditions_halve_and_go_back(increases, checked_loss, halved, halves):
    state = checked(0.9, halved=halved, increases=increases, allowed=3, checked_loss=checked_loss)
    assert state.step_size[0] == (0.5 if halves else 1.0)
    assert state.x[0, 0, 0, 0] == (7.0 if halves else 3.0)
    assert state.halved[0] == halves
    assert state.increases[0] == 0
    assert state.checked_loss[0] == 1.0


def test_between_checkpoints_nothing_changes():
    state = checked(0.9, halved=False, increases=0, allowed=-1, checked_loss=1.0)
    assert (state.step_size[0], state.x[0, 0, 0, 0], state.increases[0]) == (1.0, 3.0, 0)


def test_examples_that_withstand_come_back_with_a_larger_loss():
    attack = attacks.APGD(0.01, steps=10)
    found = attacked(attack, NETWORK, IMAGES, PREDICTED, KEYS)
    logits, clean = NETWORK(found), NETWORK(IMAGES)
    withstood = np.asarray(logits.argmax(-1) == PREDICTED)
    assert withstood.any()
    loss, before = (cross_entropy(z, PREDICTED) for z in (logits, clean))
    assert (loss > before)[withstood].all()


def test_misclassified_images_come_back_as_they_are():
    found = attacked(ATTACKS["APGD"], NETWORK, IMAGES, LABELS, KEYS)
    wrong = np.asarray(LABELS != PREDICTED)
    np.testing.assert_array_equal(found[wrong], IMAGES[wrong])


@pytest.mark.parametrize("classes", [3, 4])
def test_targets_find_the_optimum_of_a_linear_classifier(classes):
    weights = jax.random.normal(jax.random.key(7), (64, classes))
    network = lambda x: (x - 0.5).reshape(len(x), -1) @ weights  # noqa: E731
    images = jax.random.uniform(jax.random.key(8), (32, 8, 8, 1), minval=0.3, maxval=0.7)
    scores = np.asarray(network(images))
    labels = scores.argmax(-1)
    # To reach class t the margin to it must shrink by epsilon * |w_t - w_label|_1.
    slopes = np.abs(np.asarray(weights)[:, None] - np.asarray(weights)[:, :, None]).sum(0)
    margins = scores.max(-1, keepdims=True) - scores
    needed = np.where(margins > 0, margins / np.maximum(slopes[labels], 1e-9), np.inf).min(-1)
    order = np.sort(needed)
    place = 12 + np.diff(order[12:21]).argmax()
    epsilon = float(order[place : place + 2].mean())
    assert epsilon < 0.25
    attack = attacks.APGD(epsilon, objective="dlr_targeted", steps=12)
    found = attacked(attack, network, images, jnp.asarray(labels), KEYS)
    broken = network(found).argmax(-1) != labels
    np.testing.assert_array_equal(broken, needed < epsilon)


def test_runs_on_packed_survivors_break_what_a_call_breaks():
    attack = attacks.APGD(0.05, objective="dlr_targeted", steps=8, restarts=2)
    broken = NETWORK(attacked(attack, NETWORK, IMAGES, LABELS, KEYS)).argmax(-1) != LABELS

    @jax.jit
    def run(*batch):
        task = Task(NETWORK, *batch)
        return attack.advance(task, attack.start(task))

    alive = np.arange(len(IMAGES))
    for number in range(attack.rounds(3)):
        packed = np.resize(alive, len(IMAGES))  # repeated to fill the batch
        found = run(IMAGES[packed], LABELS[packed], KEYS[packed], number)
        wrong = np.asarray(NETWORK(found.adversarial).argmax(-1) != LABELS[packed])
        assert found.done.all()
        alive = np.setdiff1d(alive, packed[wrong])
    assert len(alive) > 0
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(broken)), alive)


def test_counts_its_runs():
    attack = attacks.APGD(0.1, objective="dlr_targeted", restarts=2)
    assert [attack.rounds(classes) for classes in (2, 10, 100)] == [2, 18, 18]
    assert dataclasses.replace(attack, objective="dlr").rounds(10) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("norm", "l7"),
        ("objective", "margin"),
        ("steps", 0),
        ("restarts", 0),
        ("targets", 0),
        ("rho", 1.0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}: allowed are"):
        attacks.APGD(**{"epsilon": 0.1, field: value})
