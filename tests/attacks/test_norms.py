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


@every_norm
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_points_that_are_not_finite_are_never_inside(norm, value):
    """A row as long as an image of 32x32: XLA drops NaN from its maximum."""
    images = jnp.full((3, 32, 32, 3), 0.5)
    one, whole = images.at[1, 5, 5, 0].set(value), images.at[1].set(value)
    for points in (one, whole):
        excess = jax.jit(lambda x: norms.excess(x, images, 0.1, norm))(points)
        assert_array_equal(np.isnan(excess), [False, True, False])
        assert np.isnan(norms.largest(excess))
    assert norms.largest(norms.excess(images, images, 0.1, norm)) <= 0


@every_norm
def test_the_excess_is_the_distance_outside(norm):
    image = jnp.full((1, 2, 2, 1), 0.5)
    assert_allclose(norms.excess(image.at[0, 0, 0, 0].add(0.3), image, 0.1, norm), 0.2, rtol=1e-6)
    assert_allclose(norms.excess(image.at[0, 0, 0, 0].add(0.7), image, 1.0, norm), 0.2, rtol=1e-6)
