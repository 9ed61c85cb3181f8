import numpy as np
import own_data
import pytest
import scipy.io

from harp_jax.data import DataError, load

IMAGES = own_data.random_set(size=(32, 32), classes=10, train=30, test=20)
X, Y = np.moveaxis(IMAGES.x_test, 0, 3), np.where(IMAGES.y_test == 0, 10, IMAGES.y_test)[:, None]


@pytest.fixture
def folder(tmp_path):
    own_data.write_svhn(tmp_path, IMAGES)
    return tmp_path


def opened(folder):
    return load(f"svhn:{folder}", seed=0, validation_examples=0)


def refused(folder, text):
    with pytest.raises(DataError, match=text) as caught:
        opened(folder)
    said = str(caught.value)
    assert said.startswith(f"data.name='svhn:{folder}': ")
    assert "\n" not in said


def test_label_10_is_the_digit_0(folder):
    dataset = opened(folder)
    assert dataset.num_classes == 10
    np.testing.assert_array_equal(dataset.test.labels, Y[:, 0] % 10)
    np.testing.assert_array_equal(dataset.test.images[4], X[..., 4])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"X": X},
            r"test_32x32\.mat cannot be read as .* with X and y \(KeyError: 'y'\)",
        ),
        ({"X": X[:8], "y": Y}, r"X has the shape \(8, 32, 3, 20\); allowed is \(32, 32, 3, images"),
        ({"X": X, "y": Y[:-1]}, r"X has 20 images and y 19 labels; the counts must be equal"),
        ({"X": X, "y": Y - 1}, r"y goes from 0 to 9; allowed are 1 to 10, 10 for the digit 0"),
        ({"X": X, "y": Y + 1}, r"y goes from 2 to 11; allowed are 1 to 10"),
        ({"X": X, "y": Y / 2}, r"y is of type float64; allowed are whole numbers"),
        ({"X": X / 2, "y": Y}, r"X has the float64 pixel"),
    ],
)
def test_contents_of_another_form(content, text, folder):
    scipy.io.savemat(folder / "test_32x32.mat", content)
    refused(folder, text)


def test_a_digit_without_images(tmp_path):
    y_train = np.where(IMAGES.y_train == 0, 1, IMAGES.y_train)
    own_data.write_svhn(tmp_path, IMAGES._replace(y_train=y_train))
    refused(tmp_path, "train labels go from 1 to 9; allowed are 0 to 9, each at least once")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_file(split, folder):
    (folder / f"{split}_32x32.mat").unlink()
    refused(folder, rf"no file {split}_32x32\.mat in .*; expected train_32x32\.mat and test_32x32")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "changed", "newer"])
def test_a_damaged_file(damage, folder):
    path = folder / "train_32x32.mat"
    data = path.read_bytes()
    changed = bytearray(data)
    changed[500:540] = bytes(40)
    newer = data[:124] + b"\x00\x02IM" + data[128:]  # MATLAB 7.3 writes HDF5
    contents = {"empty": b"", "text": b"no mat " * 40, "cut": data[:-900]}
    path.write_bytes({**contents, "changed": changed, "newer": newer}[damage])
    refused(folder, r"train_32x32\.mat cannot be read as a \.mat file with X and y \(.+\)$")
