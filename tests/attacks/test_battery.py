"""One battery for all attacks: every test runs on every row of `ATTACKS`.

What an attack draws at random is its own file's matter: some draw nothing.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax import attacks

BATCH, CLASSES = 32, 3  # few classes; the linear classifier has two, digits have ten
# With few steps; a new attack is a new row, and all tests hold for it.
ATTACKS = {
    "FGSM": attacks.FGSM(0.1),
    "FGSM, L2": attacks.FGSM(0.5, norm="l2"),
    "PGD": attacks.PGD(0.1, 0.025, steps=8),
    "PGD, L2, margin, 3 restarts": attacks.PGD(
        0.5, 0.125, steps=8, restarts=3, norm="l2", objective="margin"
    ),
    "CW": attacks.CW(0.1, 0.025, steps=8),
    "APGD": attacks.APGD(0.1, steps=8, restarts=2),
    "APGD, L2, dlr": attacks.APGD(0.5, norm="l2", objective="dlr", steps=8),
    "APGD-T": attacks.APGD(0.1, objective="dlr_targeted", steps=8, targets=3),
    "FAB": attacks.FAB(0.1, steps=8, targets=3, restarts=2),
    "FAB, L2": attacks.FAB(0.5, norm="l2", steps=8, targets=2, restarts=2),
    "FAB, untargeted": attacks.FAB(0.1, steps=8, targeted=False),
    "Square": attacks.Square(0.1, queries=100),
    "Square, L2": attacks.Square(0.5, norm="l2", queries=100),
    # The parts of other versions are rows of their own.
    "AutoAttack": attacks.AutoAttack(0.1, version="apgd-ce+square", steps=8, queries=20),
}
WITH_GRADIENTS = {
    name: attack for name, attack in ATTACKS.items() if getattr(attack, "uses_gradients", True)
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


def fast_on(names):
    """Parametrizes a test over all rows, of which those of other names are slow."""
    rows = [
        pytest.param(attack, id=name, marks=() if name in names else pytest.mark.slow)
        for name, attack in ATTACKS.items()
    ]
    return pytest.mark.parametrize("attack", rows)


each_class = fast_on([name for name in ATTACKS if "," not in name])  # its first row
# All ways to stay in a ball; the other rows share theirs with one of these.
each_ball = fast_on(["FGSM", "FGSM, L2", "PGD", "APGD, L2, dlr", "FAB", "FAB, L2", "Square, L2"])

KEYS = jax.random.split(jax.random.key(2), BATCH)


def perceptron(classes):
    """A random network of one hidden layer; small, so that many programs compile quickly."""
    keys = jax.random.split(jax.random.key(5), 2)
    hidden = jax.random.normal(keys[0], (64, 32)) / 4
    last = jax.random.normal(keys[1], (32, classes)) / 4
    return lambda images: jax.nn.relu((images - 0.5).reshape(len(images), -1) @ hidden) @ last


NETWORK = perceptron(CLASSES)
IMAGES = jax.random.uniform(jax.random.key(1), (BATCH, 8, 8, 1))
# The network's own classes, so that there is an accuracy to lower, but for every fourth example.
PREDICTED = NETWORK(IMAGES).argmax(-1)
WRONG = np.arange(BATCH) % 4 == 0
LABELS = jnp.where(WRONG, (PREDICTED + 1) % CLASSES, PREDICTED)


@functools.partial(jax.jit, static_argnums=(0, 1))
def attacked(attack, network, images, labels, keys):
    """One program for all tests of an attack, as far as shapes agree."""
    return attack(network, images, labels, keys)


def distances(found, images, norm):
    flat = np.asarray(found - images, np.float64).reshape(len(images), -1)
    return np.linalg.norm(flat, np.inf if norm == "linf" else 2, axis=1)


def assert_same(found, others):
    """Equal but for where a gradient is zero up to rounding, whose sign is anybody's guess."""
    assert np.mean(np.abs(np.asarray(found) - np.asarray(others)) > 1e-5) < 0.01


def test_every_attack_is_in_the_battery():
    assert {type(attack).__name__ for attack in ATTACKS.values()} == set(attacks.ATTACKS)


@every_attack
def test_stays_in_ball_and_box(attack):
    found = np.asarray(attacked(attack, NETWORK, IMAGES, LABELS, KEYS))
    assert distances(found, IMAGES, attack.norm).max() <= attack.epsilon + 1e-6
    assert found.min() >= 0.0
    assert found.max() <= 1.0


@every_attack
def test_breaks_examples_and_mends_none(attack):
    found = attacked(attack, NETWORK, IMAGES, LABELS, KEYS)
    wrong = np.asarray(NETWORK(found).argmax(-1) != LABELS)
    assert wrong[WRONG].all()
    assert wrong[~WRONG].mean() > 0.3


@every_attack
def test_repeats_with_its_keys(attack):
    found = attacked(attack, NETWORK, IMAGES, LABELS, KEYS)
    np.testing.assert_array_equal(attacked(attack, NETWORK, IMAGES, LABELS, KEYS), found)
    others = np.flip(np.arange(BATCH))  # an example takes its noise along
    moved = attacked(attack, NETWORK, IMAGES[others], LABELS[others], KEYS[others])
    assert_same(moved[others], found)


@each_class
def test_one_key_is_folded_with_the_places_and_jit_changes_nothing(attack):
    key = jax.random.key(2)
    eager = attack(NETWORK, IMAGES, LABELS, key)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(BATCH))
    assert_same(attacked(attack, NETWORK, IMAGES, LABELS, keys), eager)


@each_class
def test_depends_neither_on_the_cut_of_the_batch_nor_on_devices(attack):
    halves = [x.reshape(2, BATCH // 2, *x.shape[1:]) for x in (IMAGES, LABELS, KEYS)]
    mapped = jax.pmap(functools.partial(attack, NETWORK), devices=jax.devices()[:2])
    found = np.concatenate(list(mapped(*halves)))
    assert_same(attacked(attack, NETWORK, IMAGES, LABELS, KEYS), found)


@pytest.mark.parametrize("name", ["PGD", "CW", "APGD", "Square", "AutoAttack"])
def test_other_keys_are_other_noise(name):
    found, others = (
        attacked(ATTACKS[name], NETWORK, IMAGES, LABELS, jax.random.split(jax.random.key(k), BATCH))
        for k in (2, 3)
    )
    assert not np.array_equal(others, found)


@each_ball
def test_nothing_changes_at_epsilon_zero(attack):
    none = dataclasses.replace(attack, epsilon=0.0)
    found = attacked(none, NETWORK, IMAGES[:8], LABELS[:8], KEYS[:8])
    np.testing.assert_array_equal(found, IMAGES[:8])


@pytest.mark.parametrize("attack", WITH_GRADIENTS.values(), ids=WITH_GRADIENTS.keys())
def test_reaches_the_optimum_of_a_linear_classifier(attack):
    weights = jax.random.normal(jax.random.key(0), (64, 2))
    images = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1), minval=0.3, maxval=0.7)
    scores = (images - 0.5).reshape(64, -1) @ weights
    # The margin that a step of length 1 in the norm can take: the dual norm.
    slope = weights[:, 1] - weights[:, 0]
    dual = np.abs(slope).sum() if attack.norm == "linf" else np.linalg.norm(slope)
    needed = np.sort(np.abs(scores[:, 1] - scores[:, 0])) / dual
    # A radius that half of the examples withstand, in a gap of the needed radii and so small that
    # no pixel gets to the box.
    place = 28 + np.diff(needed[28:37]).argmax()
    epsilon = float(needed[place : place + 2].mean())
    assert epsilon < 0.25
    if hasattr(attack, "step_size"):  # steps that cross the ball from any start
        attack = dataclasses.replace(attack, step_size=2 * epsilon)
    attack = dataclasses.replace(attack, epsilon=epsilon)
    network = lambda x: (x - 0.5).reshape(len(x), -1) @ weights  # noqa: E731
    labels = scores.argmax(-1)
    found = attacked(attack, network, images, labels, jax.random.split(KEYS[0], 64))
    assert (network(found).argmax(-1) != labels).sum() == place + 1
