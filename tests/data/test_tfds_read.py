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


@pytest.fixture
def folder(tmp_path):
    """A folder with two versions of a set and, of another, two variants."""
    for version in ("my_set/9.0.0", "my_set/10.0.0", "other/small/1.0.0", "other/large/1.0.0"):
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "dataset_info.json").write_text("{}")
    (tmp_path / "my_set" / "11.0.0.incomplete").mkdir()
    (tmp_path / "downloads").mkdir()
    return tmp_path


NOT_THERE = {
    "my_set:8.0.0": "unknown; data.directory={folder!r} has my_set:9.0.0, my_set:10.0.0; allowed",
    "other:2.0.0": "unknown; data.directory={folder!r} has other:large:1.0.0, other:small:1.0.0;",
    "my_sett": "unknown; did you mean 'my_set'? data.directory={folder!r} has my_set, other; allow",
    "cifar10:8.0.0": "only: 3.0.2.); data.directory={folder!r} has my_set, other; allowed are",
}


@pytest.mark.parametrize("name", NOT_THERE)
def test_a_set_that_is_not_there_is_refused_with_what_is(name, folder):
    with pytest.raises(DataError) as caught:
        load(name, data_dir=str(folder), seed=0, validation_examples=0)
    assert NOT_THERE[name].format(folder=str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_folder_of_sets_is_named(tmp_path, monkeypatch):
    missing = str(tmp_path / "none")
    with pytest.raises(DataError, match=f"unknown; data.directory='{missing}' is no folder; allow"):
        load("my_set", data_dir=missing, seed=0, validation_examples=0)
    known = f"data.name='cifar10': not prepared, and data.directory='{missing}' is no folder; make"
    with pytest.raises(DataError, match=known):
        load("cifar10", data_dir=missing, seed=0, validation_examples=0)
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    said = f"unknown; {tmp_path}, which is searched where data.directory is unset, has no sets; al"
    with pytest.raises(DataError, match=said):
        load("my_set", seed=0, validation_examples=0)


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


@pytest.mark.slow
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
