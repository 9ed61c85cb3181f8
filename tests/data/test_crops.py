import io
import math

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from harp_jax.data import crops


def jpeg(height, width):
    photo = load_sample_images().images[0][:height, :width]
    encoded = io.BytesIO()
    Image.fromarray(photo).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def rng(seed=0):
    return np.random.default_rng(seed)


def boxes(width, height, count=2000):
    drawn = rng()
    return np.array([crops.random_box(width, height, drawn) for _ in range(count)])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 120), (64, 64)])
def test_random_boxes_lie_inside_and_fill_the_ranges(width, height):
    left, top, right, bottom = boxes(width, height).T
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (width, height)
    across, down = right - left, bottom - top
    area, ratio = across * down / (width * height), across / down
    # Whole pixels: a side is off by half of one at most.
    rounding = 1 + 1 / across.min() + 1 / down.min()
    assert crops.AREA[0] / rounding < area.min() < 1.1 * crops.AREA[0]
    assert 0.85 < area.max() <= crops.AREA[1]
    assert crops.RATIO[0] / rounding < ratio.min() < 1.05 * crops.RATIO[0]
    assert crops.RATIO[1] / 1.05 < ratio.max() < crops.RATIO[1] * rounding
    # Uniform in the logarithm: as many wide ones as high ones, of those that always fit.
    small = area < 0.5
    assert abs(np.log(ratio[small]).mean()) < 0.02


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (3, 1), (1, 1)])
def test_photos_in_which_few_boxes_fit(width, height):
    for left, top, right, bottom in boxes(width, height, 200):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left <= math.ceil((bottom - top) * 4 / 3)
        assert bottom - top <= math.ceil((right - left) * 4 / 3)


def test_what_never_fits_is_the_middle():
    assert set(map(tuple, boxes(1000, 10, 50))) == {(493, 0, 506, 10)}


def test_boxes_are_pinned():
    # Changed boxes would change every published number silently.
    assert boxes(500, 375, 3).tolist() == [
        [65, 166, 194, 337],
        [67, 4, 447, 375],
        [100, 3, 353, 267],
    ]


def test_a_random_crop_is_its_box_resized():
    photo = jpeg(150, 200)
    found = crops.random_crop(photo, 64, rng(1))  # less than half of it fits: nothing is skipped
    box = crops.random_box(200, 150, rng(1))
    whole = Image.open(io.BytesIO(photo))
    expected = whole.resize((64, 64), Image.Resampling.BILINEAR, box=box)
    np.testing.assert_array_equal(found, np.asarray(expected))
    assert found.shape == (64, 64, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("seed", range(4))
def test_photos_decoded_at_a_part_of_their_size_look_the_same(seed):
    photo = jpeg(427, 639)
    found = crops.random_crop(photo, 16, rng(seed))
    box = crops.random_box(639, 427, rng(seed))
    whole = Image.open(io.BytesIO(photo))
    expected = np.asarray(whole.resize((16, 16), Image.Resampling.BILINEAR, box=box)).astype(int)
    assert np.abs(found - expected).mean() < 6  # of 255
    shifted = np.roll(expected, 1, axis=1)
    assert np.abs(found - expected).mean() < np.abs(found - shifted).mean() / 2


@pytest.mark.parametrize(("height", "width", "size"), [(100, 150, 56), (97, 60, 28), (40, 40, 224)])
def test_the_middle_of_a_photo(height, width, size):
    photo = jpeg(height, width)
    frame = int(size * 256 / 224)
    sides = (
        (int(frame * width / height), frame)
        if width > height
        else (frame, int(frame * height / width))
    )
    resized = Image.open(io.BytesIO(photo)).resize(sides, Image.Resampling.BILINEAR)
    left, top = round((sides[0] - size) / 2), round((sides[1] - size) / 2)
    expected = resized.crop((left, top, left + size, top + size))
    np.testing.assert_array_equal(crops.centre_crop(photo, size), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_every_photo_becomes_rgb(mode):
    encoded = io.BytesIO()
    Image.fromarray(load_sample_images().images[0][:40, :50]).convert(mode).save(encoded, "JPEG")
    for crop in (
        crops.centre_crop(encoded.getvalue(), 8),
        crops.random_crop(encoded.getvalue(), 8, rng()),
    ):
        assert crop.shape == (8, 8, 3)
        grey = np.ptp(crop.astype(int), axis=-1).max() == 0
        assert grey == (mode == "L")


def test_what_is_no_photo():
    for crop in (
        lambda photo: crops.centre_crop(photo, 8),
        lambda photo: crops.random_crop(photo, 8, rng()),
    ):
        for broken in (b"not an image", jpeg(60, 60)[:300]):
            with pytest.raises(OSError, match=r"\S"):
                crop(broken)
