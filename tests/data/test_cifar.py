import builtins
import os
import pickle

import numpy as np
import own_data
import pytest

from harp_jax.data import DataError, load, pickles

IMAGES = own_data.random_set(size=(32, 32), classes=10, train=50, test=20)
HUNDRED = own_data.random_set(size=(32, 32), classes=100, train=200, test=100)


def opened(folder):
    return load(f"cifar:{folder}", seed=0, validation_examples=0)


def refused(folder, text):
    with pytest.raises(DataError, match=text) as caught:
        opened(folder)
    said = str(caught.value)
    assert said.startswith(f"data.name='cifar:{folder}': ")
    assert "\n" not in said


@pytest.fixture
def binary(tmp_path):
    own_data.write_cifar(tmp_path, IMAGES)
    return tmp_path


@pytest.fixture
def pickled(tmp_path):
    own_data.write_pickled_cifar(tmp_path, IMAGES)
    return tmp_path


def test_a_record_is_a_label_and_three_planes(binary):
    record = bytes([7]) + bytes([200]) * 1024 + bytes([100]) * 1024 + bytes([9, 8]) + bytes(1022)
    path = binary / "test_batch.bin"
    path.write_bytes(record + path.read_bytes())
    test = opened(binary).test
    assert test.labels[0] == 7
    np.testing.assert_array_equal(test.images[0, 0, :2], [[200, 100, 9], [200, 100, 8]])
    np.testing.assert_array_equal(test.images[0, 1:], np.broadcast_to([200, 100, 0], (31, 32, 3)))


@pytest.mark.parametrize("version", ["binary", "pickled"])
def test_cifar_100_has_fine_labels(version, tmp_path):
    for split, (pixels, labels) in HUNDRED.splits().items():
        planes, coarse = own_data.planes(pixels), labels // 5
        if version == "binary":
            both = np.stack([coarse, labels], 1).astype(np.uint8)
            (tmp_path / f"{split}.bin").write_bytes(np.concatenate([both, planes], 1).tobytes())
        else:
            content = {
                b"data": planes,
                b"fine_labels": labels.tolist(),
                b"coarse_labels": coarse.tolist(),
            }
            (tmp_path / split).write_bytes(pickle.dumps(content, protocol=2))
    dataset = opened(tmp_path)
    assert dataset.num_classes == 100
    np.testing.assert_array_equal(dataset.test.images, HUNDRED.x_test)
    np.testing.assert_array_equal(dataset.test.labels, HUNDRED.y_test)


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_every_protocol_but_the_last(protocol, pickled):
    pixels, labels = own_data.batches(IMAGES)["test_batch"]
    content = {b"data": pixels, b"labels": labels.tolist()}
    (pickled / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(opened(pickled).test.images, IMAGES.x_test)


def test_the_published_pickles_of_python_2(pickled):
    # By hand: what Python 2 wrote. Text is text of 8 bits, and NumPy's module has its old name.
    pixels, labels = own_data.batches(IMAGES)["test_batch"]
    data, count = pixels.tobytes(), len(labels).to_bytes(1, "little")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        b"K" + count + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(data).to_bytes(4, "little")
        + data
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    written = b"\x80\x02}(U\x04data" + array + b"U\x06labels" + numbers + b"u."
    (pickled / "test_batch").write_bytes(written)
    test = opened(pickled).test
    np.testing.assert_array_equal(test.images, IMAGES.x_test)
    np.testing.assert_array_equal(test.labels, IMAGES.y_test)


class Harmful:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harmful(tmp_path):
    touch = f"open({str(tmp_path / 'touched')!r}, 'w')"
    return [
        Harmful(os.system, f"touch {tmp_path / 'touched'}"),
        Harmful(builtins.eval, touch),
        Harmful(builtins.exec, touch),
        Harmful(getattr, touch, "upper"),
        Harmful(np.fromfile, "/dev/null"),
        np.array([Harmful(builtins.eval, touch)], object),
    ]


@pytest.mark.parametrize("place", ["data", "labels", "beside"])
@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_runs_nothing(which, place, protocol, pickled):
    pixels, labels = own_data.batches(IMAGES)["test_batch"]
    content = {b"data": pixels, b"labels": labels.tolist()}
    content[place.encode()] = harmful(pickled)[which]
    (pickled / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    refused(pickled, r"test_batch cannot be read as a batch of CIFAR \(it names .+; allowed are")
    assert not (pickled / "touched").exists()


def test_names_that_only_look_allowed_are_refused():
    for name in (b"cnumpy\nndarray.tofile\n.", b"cnumpy.core\nmultiarray\n.", b"cnumpy\nload\n."):
        with pytest.raises(ValueError, match="allowed are arrays alone"):
            pickles.load(name)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], r"\(no dict with b'data' and b'labels'\)"),
        ({b"data": IMAGES.x_test}, r"\(no dict with b'data' and b'labels'\)"),
        ({b"data": [1], b"labels": [1]}, r"\(no array of uint8 in C order\)"),
        ({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, r"\(no array of uint8 in C order\)"),
        (
            {b"data": np.zeros((2, 3072), np.uint8, order="F"), b"labels": [0, 1]},
            r"\(no array of uint8 in C order\)",
        ),
        (
            {b"data": np.zeros((2, 30), np.uint8), b"labels": [0, 1]},
            r"shape \(2, 30\) and 2 labels",
        ),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, r"\(2, 3072\) and 1 labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": []}, r"\(2, 3072\) and 0 labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": 3}, r"\(2, 3072\) and 1 labels"),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 0.5]},
            "labels is of type float64; allowed are whole numbers",
        ),
    ],
)
def test_pickles_of_another_form(content, text, pickled):
    (pickled / "test_batch").write_bytes(pickle.dumps(content, protocol=2))
    refused(pickled, rf"{pickled}/test_batch.*{text}")


@pytest.mark.parametrize("keep", [0, 10, -2000])
def test_a_pickle_that_is_cut_short(keep, pickled):
    path = pickled / "data_batch_2"
    path.write_bytes(path.read_bytes()[:keep])
    refused(pickled, r"data_batch_2 cannot be read as a batch of CIFAR \(.+\)$")


@pytest.mark.parametrize("keep", [0, 3072, -1])
def test_a_binary_file_that_is_cut_short(keep, binary):
    path = binary / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:keep])
    refused(binary, r"data_batch_2\.bin has \d+ bytes, which is not a multiple of 3073, ")


def test_a_file_that_lacks_whole_images(binary):
    path = binary / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[: 7 * 3073])
    refused(binary, r"data_batch_4\.bin has 7 images and data_batch_1\.bin 10; the counts must")


def test_a_label_that_is_none(binary):
    path = binary / "test_batch.bin"
    path.write_bytes(b"\x0a" + path.read_bytes()[1:])
    refused(binary, r"test_batch\.bin has labels from \d to 10; allowed are 0 to 9")


def test_a_class_without_images(tmp_path):
    y_train = np.where(IMAGES.y_train == 9, 8, IMAGES.y_train)
    own_data.write_cifar(tmp_path, IMAGES._replace(y_train=y_train))
    refused(tmp_path, "train has no image of class 9; allowed are 0 to 9, each at least once")


def test_a_missing_file(binary):
    (binary / "data_batch_3.bin").unlink()
    refused(binary, r"no file data_batch_3\.bin in .*; needed are data_batch_1\.bin, .*test_batch")


def test_no_file_at_all(tmp_path):
    refused(tmp_path, r"has none of data_batch_1\.bin, \.\.\., test_batch\.bin or train\.bin, ")
