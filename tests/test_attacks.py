"""One battery for all attacks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
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


KEYS = jax.random.split(jax.random.key(2), 32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def attacked(attack, network, images, labels, keys):
    """One program for all tests of an attack, as far as shapes agree."""
    return attack(network, images, labels, keys)


@pytest.fixture(scope="module")
def setting():
    images = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1))
    network = jax.jit(models.logits_fn(models.create("tiny", 10), networks.tiny()))
    # Labels that the network gets right by a margin, so that there is an accuracy to lower.
    return network, images, network(images).argmax(-1)


def test_every_attack_is_in_the_battery():
    assert {type(attack).__name__ for attack in ATTACKS.values()} == set(attacks.ATTACKS)


@every_attack
def test_stays_in_ball_and_box_and_lowers_accuracy(attack, setting):
    network, images, labels = setting
    found = np.asarray(attacked(attack, *setting, KEYS))
    assert np.abs(found - images).max() <= EPSILON + 1e-6
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    assert (network(found).argmax(-1) == labels).mean() < 0.9


@every_attack
def test_repeats_with_its_keys(attack, setting):
    found = attacked(attack, *setting, KEYS)
    np.testing.assert_array_equal(attacked(attack, *setting, KEYS), found)
    if getattr(attack, "random_start", False):
        others = jax.random.split(jax.random.key(3), 32)
        assert not np.array_equal(attacked(attack, *setting, others), found)


@every_attack
def test_one_key_is_folded_with_the_places_and_jit_changes_nothing(attack, setting):
    key = jax.random.key(2)
    eager = attack(*setting, key)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(32))
    found = attacked(attack, *setting, keys)
    assert np.mean(np.abs(found - eager) > 1e-5) < 0.01  # signs of zero gradients


@every_attack
def test_does_not_depend_on_the_cut_of_the_batch(attack, setting):
    network, images, labels = setting
    whole = attacked(attack, *setting, KEYS)
    halves = [
        attacked(attack, network, images[s], labels[s], KEYS[s]) for s in (slice(16), slice(16, 32))
    ]
    assert np.mean(np.abs(whole - np.concatenate(halves)) > 1e-5) < 0.01


@every_attack
def test_nothing_changes_at_epsilon_zero(attack, setting):
    found = attacked(dataclasses.replace(attack, epsilon=0.0), *setting, KEYS)
    np.testing.assert_array_equal(found, setting[1])


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
        found = attacked(attack, network, images, labels, KEYS[:16])
        np.testing.assert_allclose(found, best, atol=1e-6)


def test_restarts_are_at_least_as_strong_as_one(setting):
    network, _, labels = setting
    one = attacks.PGD(EPSILON, 0.025, steps=2)
    many = dataclasses.replace(one, restarts=6)
    wrong = [
        (network(attacked(attack, *setting, KEYS)).argmax(-1) != labels).sum()
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
