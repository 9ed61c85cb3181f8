import gzip
import struct

import numpy as np
import pytest

from harp_jax.data import DataError, load

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = NAMES


def encode(array):
    """IDX bytes of a uint8 array."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        TRAIN_IMAGES: rng.integers(0, 256, (20, 5, 4), np.uint8),
        TRAIN_LABELS: np.arange(20, dtype=np.uint8) % 3,
        TEST_IMAGES: rng.integers(0, 256, (6, 5, 4), np.uint8),
        TEST_LABELS: np.array([0, 1, 2, 2, 1, 0], np.uint8),
    }


@pytest.fixture
def folder(tmp_path, arrays):
    for name, array in arrays.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(encode(array)))
    return tmp_path


def read(folder, **sizes):
    return load(f"idx:{folder}", **({"seed": 0, "validation_examples": 5} | sizes))


def test_round_trip(folder, arrays):
    dataset = read(folder)
    assert dataset.name == f"idx:{folder}"
    assert dataset.num_classes == 3
    assert dataset.image_shape == (5, 4, 1)
    np.testing.assert_array_equal(dataset.test.images[..., 0], arrays[TEST_IMAGES])
    np.testing.assert_array_equal(dataset.test.labels, arrays[TEST_LABELS])
    images = np.concatenate([dataset.validation.images, dataset.train.images])[..., 0]
    labels = np.concatenate([dataset.validation.labels, dataset.train.labels])
    assert [len(dataset.validation), len(dataset.train)] == [5, 15]
    place = {image.tobytes(): i for i, image in enumerate(arrays[TRAIN_IMAGES])}
    order = [place[image.tobytes()] for image in images]
    assert sorted(order) == list(range(20))
    np.testing.assert_array_equal(labels, arrays[TRAIN_LABELS][order])


def test_plain_files_read_the_same(folder, tmp_path_factory, arrays):
    plain = tmp_path_factory.mktemp("plain")
    for name, array in arrays.items():
        (plain / name).write_bytes(encode(array))
    for part in ("train", "validation", "test"):
        one, other = getattr(read(folder), part), getattr(read(plain), part)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(read(f"~/{folder.name}").test) == 6


def assert_refused(folder, *parts):
    with pytest.raises(DataError) as caught:
        read(folder)
    text = str(caught.value)
    assert text.startswith(f"data.name='idx:{folder}': ")
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_missing_folder(tmp_path):
    assert_refused(tmp_path / "nowhere", "no folder", *NAMES, ".gz")


def test_no_path():
    assert_refused("", "no folder ''", *NAMES)


def test_a_file_is_no_folder(folder):
    assert_refused(folder / f"{TRAIN_IMAGES}.gz", "no folder", *NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(folder, name):
    (folder / f"{name}.gz").unlink()
    assert_refused(folder, f"no file {name} in", *NAMES)


def test_a_folder_in_place_of_a_file(folder):
    (folder / f"{TRAIN_IMAGES}.gz").unlink()
    (folder / TRAIN_IMAGES).mkdir()  # as some archives unpack
    assert_refused(folder, f"no file {TRAIN_IMAGES} in", *NAMES)


@pytest.mark.parametrize("keep", [1, 5, 40, -9])
def test_truncated_gzip(folder, keep):
    path = folder / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(folder, str(path), "truncated or corrupt gzip")


def test_corrupt_gzip(folder):
    path = folder / f"{TEST_LABELS}.gz"
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF  # the checksum
    path.write_bytes(bytes(data))
    assert_refused(folder, str(path), "truncated or corrupt gzip")


def test_no_gzip_at_all(folder, arrays):
    path = folder / f"{TEST_IMAGES}.gz"
    path.write_bytes(encode(arrays[TEST_IMAGES]))
    assert_refused(folder, str(path), "truncated or corrupt gzip")


@pytest.mark.parametrize(
    ("name", "data", "parts"),
    [
        (TRAIN_IMAGES, b"", ["has 0 bytes; its header alone takes 16"]),
        (TRAIN_LABELS, b"\0\0\x08\x01", ["has 4 bytes; its header alone takes 8"]),
        # Labels in the place of images.
        (TRAIN_IMAGES, encode(np.zeros(20, np.uint8)), ["0x00000801", "expected 0x00000803"]),
        # Doubles (0x0E) instead of bytes.
        (TRAIN_LABELS, b"\0\0\x0e\x01" + bytes(24), ["0x00000e01", "expected 0x00000801"]),
        (TEST_LABELS, encode(np.zeros(0, np.uint8)), ["shape (0,)", "at least 1"]),
        (
            TEST_IMAGES,
            encode(np.zeros((6, 5, 4), np.uint8))[:-1],
            ["has 119 bytes after its header, which promises 120", "(6, 5, 4)"],
        ),
        (
            TEST_LABELS,
            encode(np.zeros(6, np.uint8)) + b"\0",
            ["has 7 bytes after its header, which promises 6"],
        ),
        # 2**32 - 1 cubed overflows 64 bits.
        (TEST_IMAGES, b"\0\0\x08\x03" + b"\xff" * 12, ["promises", str((2**32 - 1) ** 3)]),
    ],
)
def test_bad_contents(folder, name, data, parts):
    (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    assert_refused(folder, str(folder / name), *parts)


def test_images_and_labels_of_different_length(folder):
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(encode(np.zeros(19, np.uint8))))
    assert_refused(
        folder, f"{TRAIN_IMAGES} has 20 images and {TRAIN_LABELS} 19 labels", "must be equal"
    )


def test_train_and_test_of_different_size(folder):
    data = encode(np.zeros((6, 4, 4), np.uint8))
    (folder / f"{TEST_IMAGES}.gz").write_bytes(gzip.compress(data))
    assert_refused(folder, "train images are (5, 4) and test images (4, 4)")


@pytest.mark.parametrize(
    ("name", "labels", "text"),
    [
        (TRAIN_LABELS, np.arange(20) % 3 + 1, "train labels go from 1 to 3; allowed are 0 to 2"),
        (TRAIN_LABELS, np.arange(20) % 2 * 2, "train has no image of class 1; allowed are 0 to 2"),
        (TEST_LABELS, np.arange(6), "test has the label 3, which train lacks; allowed are 0 to 2"),
    ],
)
def test_labels_that_do_not_number_the_classes(folder, name, labels, text):
    (folder / f"{name}.gz").write_bytes(gzip.compress(encode(labels.astype(np.uint8))))
    assert_refused(folder, text)
