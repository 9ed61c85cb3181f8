"""Minimal distances: against a linear classifier, and as a security curve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_battery import IMAGES, KEYS, LABELS, NETWORK, PREDICTED, distances

from harp_jax import attacks


@functools.partial(jax.jit, static_argnums=(0, 1))
def attacked(attack, network, images, labels):
    return attack(network, images, labels, KEYS)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_finds_the_boundary_of_a_linear_classifier(norm):
    weights = jax.random.normal(jax.random.key(0), (64, 2))
    network = lambda x: (x - 0.5).reshape(len(x), -1) @ weights  # noqa: E731
    images = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1), minval=0.3, maxval=0.7)
    scores = network(images)
    slope = weights[:, 1] - weights[:, 0]
    dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
    nearest = np.abs(scores[:, 1] - scores[:, 0]) / dual
    _, found = attacked(attacks.FMN(norm), network, images, scores.argmax(-1))
    assert (found >= nearest * (1 - 1e-4)).all()
    np.testing.assert_allclose(found, nearest, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_it_returns_is_misclassified_at_that_distance(norm):
    found, far = attacked(attacks.FMN(norm, steps=30), NETWORK, IMAGES, LABELS)
    wrong = np.asarray(PREDICTED != LABELS)
    assert np.isfinite(far).all()
    assert (NETWORK(found).argmax(-1) != LABELS).all()
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    np.testing.assert_allclose(distances(found, IMAGES, norm), far, atol=1e-6)
    np.testing.assert_array_equal(far == 0, wrong)


def test_its_distances_agree_with_the_strongest_attack_in_a_ball():
    _, far = attacked(attacks.FMN(), NETWORK, IMAGES, PREDICTED)
    epsilon = float(np.median(far))
    attack = attacks.APGD(epsilon, objective="dlr_targeted", steps=50)
    found = jax.jit(functools.partial(attack, NETWORK))(IMAGES, PREDICTED, KEYS)
    robust = (NETWORK(found).argmax(-1) == PREDICTED).mean()
    assert abs(attacks.security_curve(far, jnp.asarray([epsilon]))[0] - robust) <= 2 / len(IMAGES)


def test_an_example_without_a_way_out_is_infinitely_far():
    network = lambda x: jnp.stack([x.sum((1, 2, 3)) * 0 + 1, x.sum((1, 2, 3)) * 0], 1)  # noqa: E731
    labels = jnp.zeros(32, int)
    found, far = attacked(attacks.FMN(steps=5), network, IMAGES, labels)
    np.testing.assert_array_equal(found, IMAGES)
    assert np.isinf(far).all()


def test_security_curve():
    far = jnp.asarray([0.0, 0.1, 0.3, jnp.inf])
    curve = attacks.security_curve(far, jnp.asarray([0.0, 0.05, 0.2, 1.0]))
    np.testing.assert_array_equal(curve, [0.75, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    ("field", "value"),
    [("norm", "l7"), ("steps", 0), ("gamma_init", 1.0), ("gamma_final", 0.0), ("alpha_init", 0.0)],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}: allowed are"):
        attacks.FMN(**{field: value})
