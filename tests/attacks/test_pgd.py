"""What is PGD's alone: its optimum, its restarts, its settings, and C&W's cap."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_battery import IMAGES, KEYS, LABELS, NETWORK, PREDICTED, attacked

from harp_jax import attacks

PGD = attacks.PGD(0.1, 0.025, steps=2)


def test_finds_the_corner_of_a_linear_classifier():
    weights = jax.random.normal(jax.random.key(0), (64, 2))
    network = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
    images = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1), minval=0.2, maxval=0.8)
    labels = network(images).argmax(-1)
    direction = jnp.sign(weights[:, 1] - weights[:, 0]).reshape(8, 8, 1)
    best = images + 0.1 * jnp.where(labels == 0, 1, -1)[:, None, None, None] * direction[None]
    one = dataclasses.replace(PGD, step_size=0.2)  # steps that cross the ball from any start
    for attack in (attacks.FGSM(0.1), one):
        found = attacked(attack, network, images, labels, KEYS[:16])
        np.testing.assert_allclose(found, best, atol=1e-6)


def test_restarts_are_at_least_as_strong_as_one():
    wrong = [
        (NETWORK(attacked(attack, NETWORK, IMAGES, PREDICTED, KEYS)).argmax(-1) != PREDICTED).sum()
        for attack in (PGD, dataclasses.replace(PGD, restarts=6))
    ]
    assert wrong[1] >= wrong[0]


def test_cw_is_pgd_on_the_margin_until_the_margin_is_enough():
    cw = attacks.CW(0.1, 0.025, steps=8, random_start=False)
    pgd = attacks.PGD(0.1, 0.025, steps=8, random_start=False, objective="margin")
    far = attacked(pgd, NETWORK, IMAGES, LABELS, KEYS)
    np.testing.assert_array_equal(attacked(cw, NETWORK, IMAGES, LABELS, KEYS), far)
    none = dataclasses.replace(cw, confidence=0.0)
    found = attacked(none, NETWORK, IMAGES, LABELS, KEYS)
    misclassified = np.asarray(LABELS != PREDICTED)
    np.testing.assert_array_equal(found[misclassified], IMAGES[misclassified])
    assert not np.array_equal(found[~misclassified], IMAGES[~misclassified])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("step_size", 0.0),
        ("steps", 0),
        ("restarts", 0),
        ("norm", "l7"),
        ("objective", "dlr_targeted"),
    ],
)
def test_bad_settings_are_named(field, value):
    settings = {"epsilon": 0.1, "step_size": 0.02, field: value}
    with pytest.raises(ValueError, match=f"{field}={value!r}: allowed are"):
        attacks.PGD(**settings)


def test_a_bad_confidence_is_named():
    with pytest.raises(ValueError, match=r"confidence=-1\.0: allowed are"):
        attacks.CW(0.1, 0.02, confidence=-1.0)
