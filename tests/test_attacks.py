"""One battery for all attacks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax import attacks, models

EPSILON = 0.1
ATTACKS = {
    "FGSM": attacks.FGSM(EPSILON),
    "PGD": attacks.PGD(EPSILON, 0.025, steps=8),
    "PGD, 3 restarts": attacks.PGD(EPSILON, 0.025, steps=4, restarts=3),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


@pytest.fixture(scope="module")
def setting():
    images = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1))
    model = models.create("tiny", 10)
    network = models.logits_fn(model, model.init(jax.random.key(0), images))
    # Labels that the network gets right by a margin, so that there is an accuracy to lower.
    return network, images, network(images).argmax(-1)


def test_every_attack_is_in_the_battery():
    assert {type(attack).__name__ for attack in ATTACKS.values()} == set(attacks.ATTACKS)


@every_attack
def test_stays_in_ball_and_box_and_lowers_accuracy(attack, setting):
    network, images, labels = setting
    found = attack(network, images, labels, jax.random.key(2))
    assert np.abs(found - images).max() <= EPSILON + 1e-6
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    assert (network(found).argmax(-1) == labels).mean() < 0.9


@every_attack
def test_repeats_with_its_key_and_under_jit(attack, setting):
    network, images, labels = setting
    run = jax.jit(lambda key: attack(network, images, labels, key))
    np.testing.assert_array_equal(run(jax.random.key(2)), run(jax.random.key(2)))
    eager = attack(network, images, labels, jax.random.key(2))
    assert np.mean(np.abs(run(jax.random.key(2)) - eager) > 1e-5) < 0.01  # signs of zero gradients
    if getattr(attack, "random_start", False):
        assert not np.array_equal(run(jax.random.key(2)), run(jax.random.key(3)))


@every_attack
def test_does_not_depend_on_the_cut_of_the_batch(attack, setting):
    network, images, labels = setting
    keys = jax.random.split(jax.random.key(2), 32)
    whole = attack(network, images, labels, keys)
    halves = [attack(network, images[s], labels[s], keys[s]) for s in (slice(16), slice(16, 32))]
    assert np.mean(np.abs(whole - jnp.concatenate(halves)) > 1e-5) < 0.01


@every_attack
def test_nothing_changes_at_epsilon_zero(attack, setting):
    network, images, labels = setting
    found = dataclasses.replace(attack, epsilon=0.0)(network, images, labels, jax.random.key(2))
    np.testing.assert_array_equal(found, images)


def test_reaches_the_optimum_of_a_linear_classifier():
    weights = jax.random.normal(jax.random.key(0), (64, 2))
    network = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1), minval=0.2, maxval=0.8)
    labels = network(images).argmax(-1)
    direction = jnp.sign(weights[:, 1] - weights[:, 0]).reshape(8, 8, 1)
    best = images + EPSILON * jnp.where(labels == 0, 1, -1)[:, None, None, None] * direction[None]
    for attack in ATTACKS.values():
        if isinstance(attack, attacks.PGD):  # steps that cross the ball from any start
            attack = dataclasses.replace(attack, step_size=2 * EPSILON)
        found = attack(network, images, labels, jax.random.key(2))
        np.testing.assert_allclose(found, best, atol=1e-6)


def test_restarts_are_at_least_as_strong_as_one(setting):
    network, images, labels = setting
    one = attacks.PGD(EPSILON, 0.025, steps=2)
    many = dataclasses.replace(one, restarts=6)
    wrong = [
        (network(attack(network, images, labels, jax.random.key(4))).argmax(-1) != labels).sum()
        for attack in (one, many)
    ]
    assert wrong[1] >= wrong[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("epsilon", -0.1), ("step_size", 0.0), ("steps", 0), ("restarts", 0), ("norm", "l7")],
)
def test_bad_settings_are_named(field, value):
    settings = {"epsilon": 0.1, "step_size": 0.02, field: value}
    with pytest.raises(ValueError, match=f"{field}={value!r}: allowed are"):
        attacks.PGD(**settings)
