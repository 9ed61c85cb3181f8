import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax.data import DataError, augment, to_unit

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 6, 5, 3), np.uint8)
KEYS = jax.random.split(jax.random.key(7), 16)

jit_augment = jax.jit(augment, static_argnames=("crop_padding", "flip"))


def numpy_crops(image, padding):
    """{(top, left): crop} of the zero-padded image."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return {
        (top, left): padded[top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    }


@pytest.mark.parametrize("compile_", [lambda f: f, jax.jit])
def test_to_unit_is_exactly_the_quotient(compile_):
    values = np.arange(256, dtype=np.uint8)
    quotient = values.astype(np.float32) / np.float32(255)
    unit = np.asarray(compile_(to_unit)(jnp.asarray(values)))
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, quotient)
    assert (unit.min(), unit.max()) == (0.0, 1.0)


def test_nothing_to_draw_leaves_the_images():
    augmented = jit_augment(jnp.asarray(IMAGES), KEYS, crop_padding=0, flip=False)
    np.testing.assert_array_equal(augmented, IMAGES.astype(np.float32) / np.float32(255))


def test_crop_is_a_window_of_the_padded_image_at_the_drawn_offsets():
    padding = 2
    augmented = jit_augment(jnp.asarray(IMAGES), KEYS, crop_padding=padding, flip=False)
    drawn = []
    for image, crop in zip(IMAGES, np.asarray(augmented), strict=True):
        windows = numpy_crops(image, padding)
        places = [
            place
            for place, window in windows.items()
            if np.array_equal(window.astype(np.float32) / np.float32(255), crop)
        ]
        assert len(places) == 1
        drawn += places
    # 16 draws out of 25 places: several rows and columns must occur.
    assert len({top for top, _ in drawn}) >= 3
    assert len({left for _, left in drawn}) >= 3


def test_crop_offsets_are_uniform():
    count, padding = 4000, 1
    # One bright pixel in the middle tells the offset.
    image = np.zeros((3, 3, 1), np.uint8)
    image[1, 1] = 255
    images = jnp.asarray(np.broadcast_to(image, (count, 3, 3, 1)))
    keys = jax.random.split(jax.random.key(0), count)
    seen = np.asarray(jit_augment(images, keys, crop_padding=padding, flip=False)).sum(axis=0)
    np.testing.assert_array_less(np.abs(seen - count / 9), 5 * np.sqrt(count / 9))


def test_flip_mirrors_the_width_of_about_half():
    count = 1000
    images = np.broadcast_to(IMAGES[0], (count, *IMAGES[0].shape))
    keys = jax.random.split(jax.random.key(1), count)
    augmented = np.asarray(jit_augment(jnp.asarray(images), keys, crop_padding=0, flip=True))
    plain = IMAGES[0].astype(np.float32) / np.float32(255)
    mirrored = np.array([np.array_equal(one, plain[:, ::-1]) for one in augmented])
    untouched = np.array([np.array_equal(one, plain) for one in augmented])
    assert (mirrored ^ untouched).all()
    assert 420 < mirrored.sum() < 580


def test_flip_mirrors_the_cropped_image_and_leaves_the_crop_as_drawn():
    augmented = jit_augment(jnp.asarray(IMAGES), KEYS, crop_padding=2, flip=True)
    cropped = np.asarray(jit_augment(jnp.asarray(IMAGES), KEYS, crop_padding=2, flip=False))
    mirrored = 0
    for both, crop in zip(np.asarray(augmented), cropped, strict=True):
        same = np.array_equal(both, crop)
        assert same or np.array_equal(both, crop[:, ::-1])
        mirrored += not same
    assert 0 < mirrored < len(IMAGES)


def test_an_example_does_not_depend_on_the_batch_cut():
    step = functools.partial(jit_augment, crop_padding=2, flip=True)
    whole = np.asarray(step(jnp.asarray(IMAGES), KEYS))
    for size in (1, 4):
        parts = [
            step(jnp.asarray(IMAGES[start : start + size]), KEYS[start : start + size])
            for start in range(0, len(IMAGES), size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = np.arange(len(IMAGES))[::-1]
    np.testing.assert_array_equal(step(jnp.asarray(IMAGES[order]), KEYS[order]), whole[order])
    assert whole.min() >= 0.0
    assert whole.max() <= 1.0


def test_negative_padding_is_refused():
    with pytest.raises(DataError, match=r"crop_padding=-1: must be at least 0"):
        augment(jnp.asarray(IMAGES), KEYS, crop_padding=-1, flip=False)
