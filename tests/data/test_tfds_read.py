import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

import harp_jax
from harp_jax.data import DataError, load, tfds_images

# `mock_data` replaces what lies on disk. Left to say are that something lies there, and how to read
# several records: its own `_getitems` takes a `self` that it is never given.
READ_IN_A_FRESH_PROCESS = """
import sys
from unittest import mock
import tensorflow_datasets as tfds
from harp_jax.data import load

load("digits", seed=0, validation_examples=10)
prepared = mock.patch.object(tfds.core.DatasetBuilder, "is_prepared", lambda builder: True)
several = mock.patch(
    "tensorflow_datasets.testing.mocking._getitems",
    lambda places, generator: [generator[place] for place in places],
)
with tfds.testing.mock_data(num_examples=8), prepared, several:
    dataset = load("cifar10", seed=0, validation_examples=2)
assert len(dataset.train) == 6, dataset
loaded = sorted(name for name in sys.modules if name.split(".")[0] == "tensorflow")
assert not loaded, loaded
"""


@pytest.fixture
def prepared(monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda builder: True)
    monkeypatch.setattr(
        "tensorflow_datasets.testing.mocking._getitems",
        lambda places, generator: [generator[place] for place in places],
    )


class Examples(list):
    """A data source in memory."""

    def __getitems__(self, places):
        return [self[place] for place in places]


def stored(examples):
    """Mocks the data source by a list, the same for each split."""
    return tfds.testing.mock_data(
        as_data_source_fn=lambda builder, split, decoders: Examples(examples)
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn_cropped", "fashion_mnist", "mnist"])
def test_mocked_sets_are_read(name, prepared):
    with tfds.testing.mock_data(num_examples=30):
        dataset = load(name, seed=0, validation_examples=10, test_examples=7)
    assert dataset.num_classes == (100 if name == "cifar100" else 10)
    assert dataset.image_shape == ((28, 28, 1) if name.endswith("mnist") else (32, 32, 3))
    assert [len(dataset.train), len(dataset.validation), len(dataset.test)] == [20, 10, 7]
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    assert len(np.unique(dataset.train.images)) > 200


def test_images_labels_and_stored_order_are_kept(prepared):
    rng = np.random.default_rng(0)
    examples = [
        {"image": rng.integers(0, 256, (32, 32, 3), np.uint8), "label": label, "id": str(label)}
        for label in (3, 1, 4, 1, 5, 9)
    ]
    with stored(examples):
        dataset = load("cifar10", seed=0, validation_examples=0, test_examples=4)
    np.testing.assert_array_equal(dataset.test.labels, [3, 1, 4, 1])
    np.testing.assert_array_equal(
        dataset.test.images, np.stack([example["image"] for example in examples[:4]])
    )


def test_more_examples_than_are_read_together(prepared):
    count = 2 * tfds_images._READ_TOGETHER + 5
    examples = [
        {"image": np.full((32, 32, 3), place % 251, np.uint8), "label": place % 10}
        for place in range(count)
    ]
    with stored(examples):
        test = load("cifar10", seed=0, validation_examples=0).test
    np.testing.assert_array_equal(test.images[:, 31, 31, 2], np.arange(count) % 251)
    np.testing.assert_array_equal(test.labels, np.arange(count) % 10)


def test_images_of_different_sizes_must_be_streamed(prepared):
    examples = [{"image": np.zeros((height, 8, 3), np.uint8), "label": 0} for height in (8, 8, 9)]
    text = r"'imagenet2012': images of different sizes \(\(8, 8, 3\) and \(9, 8, 3\)\).* stream"
    with stored(examples), pytest.raises(DataError, match=text):
        load("imagenet2012", seed=0, validation_examples=0)


def test_splits_of_different_sizes_must_be_streamed(prepared):
    def source(builder, split, decoders):
        size = 8 if split == "train" else 9
        return Examples([{"image": np.zeros((size, size, 3), np.uint8), "label": 0}])

    with (
        tfds.testing.mock_data(as_data_source_fn=source),
        pytest.raises(DataError, match=r"images of different sizes .* stream"),
    ):
        load("imagenet2012", seed=0, validation_examples=0)


@pytest.mark.parametrize(
    ("examples", "text"),
    [
        ([], r"data\.name='cifar10': split 'train' is empty"),
        (
            [{"image": np.zeros((32, 32, 3), np.uint8), "label": -1}],
            r"data\.name='cifar10': split 'train' has labels outside \[0, 10\)",
        ),
    ],
)
def test_splits_that_cannot_be_trained_on(examples, text, prepared):
    with stored(examples), pytest.raises(DataError, match=text):
        load("cifar10", seed=0, validation_examples=0)


def test_preparing_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
    )
    with pytest.raises(DataError) as caught:
        load("cifar10", data_dir=str(tmp_path), seed=0, validation_examples=0)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"data.name='cifar10': not prepared in {tmp_path}/cifar10/")
    assert text.endswith("pip install 'harp_jax[prepare]'")


def test_reading_never_imports_tensorflow():
    root = Path(next(iter(harp_jax.__path__))).parent
    done = subprocess.run(
        [sys.executable, "-c", READ_IN_A_FRESH_PROCESS],
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
