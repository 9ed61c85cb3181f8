import io

import numpy as np
import own_data
import pytest
from PIL import Image

from harp_jax.data import DataError, load

IMAGES = own_data.random_set(classes=3, train=9, test=6)
OTHER_NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def opened(path, arrays, **fields):
    np.savez(path / "set.npz", **arrays)
    return load(f"npz:{path / 'set.npz'}", **({"seed": 0, "validation_examples": 0} | fields))


def everything(dataset):
    """Images and labels of train, in stored order as far as labels tell."""
    order = np.lexsort((dataset.train.images[:, 0, 0, 0], dataset.train.labels))
    return dataset.train.images[order], dataset.train.labels[order]


@pytest.mark.parametrize(
    "changed",
    [
        {"y_train": IMAGES.y_train[:, None].astype(np.uint8)},
        {"x_train": IMAGES.x_train.astype(np.int64), "y_test": IMAGES.y_test.astype(np.int8)},
        {"x_train": IMAGES.x_train / np.float32(255)},
        {"x_train": IMAGES.x_train / 255.0, "x_test": IMAGES.x_test / 255},
        {"x_train": (IMAGES.x_train / 255).astype(np.float16)},
    ],
)
def test_types_that_hold_the_same_images(changed, tmp_path):
    expected = opened(tmp_path, IMAGES._asdict())
    dataset = opened(tmp_path, {**IMAGES._asdict(), **changed})
    assert dataset.identity()["digests"] == expected.identity()["digests"]
    assert dataset.train.images.dtype == np.uint8


def test_other_names_and_a_validation_split_that_is_not_used(tmp_path):
    expected = opened(tmp_path, IMAGES._asdict())
    arrays = dict(zip(OTHER_NAMES, IMAGES, strict=True))
    dataset = opened(tmp_path, {**arrays, "val_images": np.zeros(3), "val_labels": np.zeros(3)})
    assert dataset.identity()["digests"] == expected.identity()["digests"]


def test_grey_images_need_no_channel_axis(tmp_path):
    grey = IMAGES._replace(x_train=IMAGES.x_train[..., 0], x_test=IMAGES.x_test[..., :1])
    assert opened(tmp_path, grey._asdict()).image_shape == (8, 8, 1)


def test_a_set_that_is_not_split_gives_a_fifth_of_each_class_for_test(tmp_path):
    whole = own_data.random_set(classes=4, train=60, test=4)
    arrays = {"images": whole.x_train, "labels": whole.y_train}
    dataset, again = (opened(tmp_path, arrays, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [3, 3, 3, 3])
    assert len(dataset.train) == 48
    rows = {image.tobytes() for part in (dataset.train, dataset.test) for image in part.images}
    assert rows == {image.tobytes() for image in whole.x_train}
    assert again.test.digest() == dataset.test.digest()  # whatever the seed


X, Y = IMAGES.x_train, IMAGES.y_train
BAD = [
    ({"x_train": X[0]}, "x_train has 8 images and y_train 9 labels"),
    ({"x_train": X[0, 0]}, "x_train has the shape (8, 3); allowed are [images, height, width] and"),
    ({"x_train": X[:0]}, "x_train has the shape (0, 8, 8, 3)"),
    ({"x_train": X.transpose(0, 3, 1, 2)}, "x_train has the shape (9, 3, 8, 8)"),
    ({"x_train": X > 9}, "x_train is of type bool"),
    ({"x_train": X.astype(complex)}, "x_train is of type complex128"),
    ({"x_train": X.astype(int) - 9}, "x_train has pixels from -"),
    ({"x_test": X.astype(np.uint16) * 200}, "x_test has pixels from"),
    ({"x_train": X // 250}, "x_train has no pixel above 0"),
    ({"x_train": np.uint8(X > 99)}, "x_train has no pixel above 1"),
    ({"x_train": X.astype(np.float32)}, "x_train has the float32 pixel"),
    ({"x_train": X / 255 - 0.5}, "x_train has the float64 pixel -0."),
    ({"x_train": X / 300}, "x_train has the float64 pixel 0."),
    ({"x_train": np.where(X > 99, np.nan, X / 255)}, "x_train has the float64 pixel nan"),
    ({"y_train": Y[:-1]}, "x_train has 9 images and y_train 8 labels; the counts must be equal"),
    ({"y_train": Y / 1}, "y_train is of type float64; allowed are whole numbers"),
    ({"y_train": np.eye(3, dtype=int)[Y]}, "y_train has the shape (9, 3); allowed is one label"),
    ({"y_train": Y + 1}, "train labels go from 1 to 3; allowed are 0 to 2"),
    ({"y_train": Y - 1}, "train labels go from -1 to 1; allowed are 0 to 2, each at least once"),
    ({"y_train": np.where(Y == 1, 3, Y)}, "train has no image of class 1; allowed are 0 to 3"),
    ({"y_train": Y * 2**40}, "y_train has the label 2199023255552"),
    ({"y_train": 0 * Y, "y_test": 0 * IMAGES.y_test}, "train has 1 class; allowed are at least 2"),
    ({"y_test": IMAGES.y_test + 1}, "test has the label 3, which train lacks; allowed are 0 to 2"),
    ({"y_test": IMAGES.y_test - 1}, "test has the label -1, which train lacks"),
    ({"x_test": IMAGES.x_test[:, :5]}, "x_train has images of (8, 8, 3) and x_test of (5, 8, 3)"),
    ({"x_test": IMAGES.x_test[:0]}, "x_test has the shape (0, 8, 8, 3), so no pixel; allowed are"),
    ({"x_train": X.astype(object)}, "cannot be read (Object arrays cannot be loaded"),
]


@pytest.mark.parametrize(("changed", "text"), BAD, ids=[text for _, text in BAD])
def test_arrays_of_another_form_are_named(changed, text, tmp_path):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {**IMAGES._asdict(), **changed})
    said = str(caught.value)
    assert said.startswith(f"data.name='npz:{tmp_path}/set.npz': ")
    assert "\n" not in said
    assert text in said


@pytest.mark.parametrize("missing", IMAGES._fields)
def test_a_missing_array(missing, tmp_path):
    arrays = {name: array for name, array in IMAGES._asdict().items() if name != missing}
    with pytest.raises(DataError, match=f"has no array '{missing}', only .*; x_train, y_train, "):
        opened(tmp_path, arrays)


def test_too_few_of_a_class_to_cut_a_test_split(tmp_path):
    with pytest.raises(DataError, match=r"has 2 images of class 0; allowed are at least 3"):
        opened(tmp_path, {"images": X[:6], "labels": Y[:6]})


@pytest.mark.parametrize("kind", ["cut", "changed", "no zip", "one array"])
def test_a_damaged_file(kind, tmp_path):
    path = tmp_path / "set.npz"
    np.savez_compressed(path, **IMAGES._asdict())
    data = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(data[:-100])
    elif kind == "changed":
        data[400] ^= 0xFF
        path.write_bytes(data)
    elif kind == "no zip":
        path.write_bytes(b"images")
    else:
        with path.open("wb") as file:
            np.save(file, X)
    with pytest.raises(DataError, match=r"set\.npz cannot be read \(.+\)") as caught:
        load(f"npz:{path}", seed=0, validation_examples=0)
    assert "\n" not in str(caught.value)


def encoded(images, form="PNG"):
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, form)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    return np.concatenate(files), np.array([len(file) for file in files], np.int32)


def encoded_set(**changed):
    arrays = {"train_labels": IMAGES.y_train, "test_labels": IMAGES.y_test}
    for split, images in (("train", IMAGES.x_train), ("test", IMAGES.x_test)):
        arrays[f"{split}_jpegs"], arrays[f"{split}_sizes"] = encoded(images)
    return arrays | changed


def test_encoded_images_are_the_same_images(tmp_path):
    expected = opened(tmp_path, IMAGES._asdict())
    assert opened(tmp_path, encoded_set()).identity()["digests"] == expected.identity()["digests"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_sizes": np.array([7])}, "test_sizes are not the bytes of the files in test_jpegs"),
        ({"train_jpegs": np.zeros(3)}, "train_sizes are not the bytes of the files in train_jpegs"),
        (
            {"test_jpegs": np.zeros(6, np.uint8), "test_sizes": np.ones(6, int)},
            "image 0 of test_jpegs",
        ),
        ({"train_labels": IMAGES.y_train[1:]}, "train_images"),
    ],
)
def test_damaged_encoded_images(changed, message, tmp_path):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, encoded_set(**changed))


def test_encoded_images_of_several_sizes_are_refused(tmp_path):
    images = [*IMAGES.x_test[1:], np.zeros((4, 8, 3), np.uint8)]
    jpegs, sizes = encoded(images)
    with pytest.raises(DataError, match=r"test_jpegs has images of \[\(4, 8, 3\), \(8, 8, 3\)\]"):
        opened(tmp_path, encoded_set(test_jpegs=jpegs, test_sizes=sizes))
