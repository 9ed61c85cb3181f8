"""Balls: what is drawn from them, steepest ascent, projection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.attacks import norms

IMAGES = jax.random.uniform(jax.random.key(0), (2000, 2, 2, 1))
KEYS = norms.per_example_keys(jax.random.key(1), 2000)
every_norm = pytest.mark.parametrize("norm", norms.NORMS)


@every_norm
def test_uniform_noise_is_uniform_in_the_ball(norm):
    noise = norms.uniform_noise(KEYS, IMAGES, 0.5, norm)
    # (length / radius)^d of a uniform point is uniform on [0, 1] in d = 4 dimensions.
    share = np.sort((norms.length(noise, norm) / 0.5) ** 4)
    assert_allclose(share, np.linspace(0, 1, 2000), atol=0.05)
    assert_allclose(noise.mean(0), 0, atol=0.03)


@every_norm
def test_surface_noise_has_length_epsilon(norm):
    noise = norms.surface_noise(KEYS, IMAGES, 0.5, norm)
    assert_allclose(norms.length(noise, norm), 0.5, rtol=1e-6)
    assert_allclose(noise.mean(0), 0, atol=0.03)


@every_norm
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_a_step_has_its_length_however_small_the_gradient(norm, scale):
    gradient = scale * (IMAGES - 0.5)
    moved = norms.ascend(IMAGES, gradient, 0.25, norm) - IMAGES
    assert_allclose(norms.length(moved, norm), 0.25, rtol=1e-5)
    assert ((moved * gradient).sum((1, 2, 3)) > 0).all() or scale < 1


@every_norm
def test_a_zero_gradient_moves_nothing(norm):
    moved = norms.ascend(IMAGES, jnp.zeros_like(IMAGES), 0.25, norm)
    assert_array_equal(moved, IMAGES)


@every_norm
def test_projection(norm):
    far = IMAGES + jax.random.normal(jax.random.key(2), IMAGES.shape)
    found = norms.project(far, IMAGES, 0.3, norm)
    assert norms.length(found - IMAGES, norm).max() <= 0.3 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    inside = norms.project(norms.project(IMAGES + 0.01, IMAGES, 0.3, norm), IMAGES, 0.3, norm)
    assert_allclose(inside, jnp.clip(IMAGES + 0.01, 0, 1), atol=1e-7)
    assert_array_equal(norms.project(far, IMAGES, 0.0, norm), IMAGES)


def test_projection_onto_an_l2_ball_keeps_the_direction():
    image = jnp.full((1, 1, 2, 1), 0.5)
    found = norms.project(image + jnp.asarray([[[[3.0], [4.0]]]]), image, 0.1, "l2")
    assert_allclose(found[0, 0, :, 0], [0.56, 0.58], rtol=1e-6)


@every_norm
def test_each_example_has_its_radius(norm):
    radii = jnp.linspace(0.0, 0.2, 2000)
    found = norms.project(IMAGES * 0 + 0.5 + 9, IMAGES * 0 + 0.5, norms.expand(radii), norm)
    assert_allclose(norms.length(found - 0.5, norm), radii, atol=1e-6)
