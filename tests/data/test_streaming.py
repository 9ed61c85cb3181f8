import multiprocessing

import fake_imagenet
import numpy as np
import pytest
import tensorflow_datasets as tfds

from harp_jax.data import DataError, Split, eval_batches, load, streaming, train_batches
from harp_jax.data.crops import centre_crop
from harp_jax.data.photos import Photos
from harp_jax.data.streaming import StreamedSplit

TRAIN, TEST, SIZE = 44, 10, 16
FIELDS = ("images", "labels", "index", "valid")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    fake_imagenet.write(folder, train=TRAIN, validation=TEST, test=3)
    return str(folder)


def opened(folder, **arguments):
    arguments = {"validation_examples": 6, "image_size": SIZE, "seed": 0} | arguments
    return load("imagenet2012", data_dir=folder, **arguments)


@pytest.fixture
def train(folder):
    return opened(folder).train


def stored(folder, split):
    """The published examples as TFDS reads them, still encoded."""
    builder = tfds.builder("imagenet2012", data_dir=folder)
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(builder.as_data_source(split, decoders=decoders))


def epoch_of(split, **arguments):
    arguments = {"seed": 3, "epoch": 0, "batch_size": 8, "devices": 2} | arguments
    return list(train_batches(split, **arguments))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(batch[field], other[field], err_msg=field)
            assert batch[field].dtype == other[field].dtype


def crops_by_place(batches):
    """{place in the split: crop}."""
    return {
        int(place): image
        for batch in batches
        for place, image in zip(
            batch["index"].ravel(), batch["images"].reshape(-1, SIZE, SIZE, 3), strict=True
        )
    }


def rows(images):
    return {image.tobytes() for image in images}


def test_batches_are_those_of_a_set_in_memory_but_for_the_crops(train):
    batches = epoch_of(train)
    assert len(batches) == 4
    for batch, other in zip(batches, epoch_of(Split(train.images, train.labels)), strict=True):
        assert batch["images"].shape == (2, 4, SIZE, SIZE, 3)
        assert batch["images"].dtype == np.uint8
        for field in ("labels", "index", "valid"):
            np.testing.assert_array_equal(batch[field], other[field])
            assert batch[field].dtype == other[field].dtype
        assert not np.array_equal(batch["images"], other["images"])
    # They are parts of those very photos: of about the same colours.
    crops = crops_by_place(batches)
    colours = np.array([[crops[i].mean((0, 1)), train.images[i].mean((0, 1))] for i in crops])
    assert np.corrcoef(colours[:, 0].ravel(), colours[:, 1].ravel())[0, 1] > 0.8


def test_splits_are_parts_of_what_is_published(folder):
    dataset = opened(folder)
    assert dataset.num_classes == 1000
    assert dataset.image_shape == (SIZE, SIZE, 3)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [38, 6, 10]
    published = stored(folder, "train")
    both = [*dataset.train.images, *dataset.validation.images]
    assert len(rows(both)) == TRAIN
    assert rows(both) == rows(centre_crop(example["image"], SIZE) for example in published)
    labels = np.concatenate([dataset.train.labels, dataset.validation.labels])
    assert sorted(labels) == sorted(example["label"] for example in published)


def test_evaluation_sees_the_middle_of_labelled_photos(folder):
    # The published split 'test' has no labels.
    expected = stored(folder, "validation")[:7]
    test = opened(folder, test_examples=7).test
    assert test.images.dtype == np.uint8
    np.testing.assert_array_equal(test.labels, [each["label"] for each in expected])
    middles = np.stack([centre_crop(each["image"], SIZE) for each in expected])
    np.testing.assert_array_equal(test.images, middles)
    assert test.images is test.images  # decoded once
    batch, last = eval_batches(test, batch_size=4, devices=1)
    np.testing.assert_array_equal(batch["images"][0], middles[:4])
    assert last["valid"].sum() == 3


@pytest.mark.slow
def test_worker_processes_change_nothing(folder, train):
    assert_same(epoch_of(opened(folder, workers=2).train), epoch_of(train))
    test = opened(folder, workers=1).test  # of which one is enough: starting it takes seconds
    np.testing.assert_array_equal(test.images, opened(folder).test.images)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("start", [1, 3, 4])
def test_start_resumes_in_mid_epoch_without_reading_what_it_skips(train, start, monkeypatch):
    whole = epoch_of(train)
    read = []
    original = Photos.read
    monkeypatch.setattr(
        Photos, "read", lambda self, places: read.extend(places) or original(self, places)
    )
    assert_same(epoch_of(train, start=start), whole[start:])
    assert len(read) == 8 * (4 - start)


def test_processes_share_a_global_batch(train):
    whole = epoch_of(train, devices=1)
    parts = [epoch_of(train, devices=1, process_index=i, process_count=2) for i in range(2)]
    joined = [
        {field: np.concatenate([part[field] for part in step], axis=1) for field in FIELDS}
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_crops_depend_on_seed_epoch_and_photo_alone(train):
    first = crops_by_place(epoch_of(train))
    for other in ({"epoch": 1}, {"seed": 4}):
        crops = crops_by_place(epoch_of(train, **other))
        both = first.keys() & crops.keys()
        assert len(both) > 20
        assert not any(np.array_equal(first[place], crops[place]) for place in both)
    # In other batches, next to other photos, each is cut as before.
    fewer = train.take(np.arange(0, len(train), 2, dtype=np.int32))
    crops = crops_by_place(epoch_of(fewer, batch_size=2))
    both = [place for place in crops if 2 * place in first]
    assert len(both) > 10
    for place in both:
        np.testing.assert_array_equal(crops[place], first[2 * place])


def test_the_keys_of_crops_are_pinned(train, monkeypatch):
    # Changed keys would change every published number silently.
    monkeypatch.setattr(
        streaming,
        "random_crop",
        lambda photo, size, rng: np.full((size, size, 3), rng.integers(256), np.uint8),
    )
    drawn = {place: int(crop[0, 0, 0]) for place, crop in crops_by_place(epoch_of(train)).items()}
    assert [drawn[place] for place in sorted(drawn)[:6]] == [224, 255, 197, 139, 122, 231]


@pytest.mark.slow
def test_leaving_an_epoch_early_ends_its_workers(folder):
    train = opened(folder, workers=1).train
    batches = train_batches(train, seed=0, epoch=0, batch_size=4, devices=1)
    next(batches)
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    assert multiprocessing.active_children() == []


class Listed(list):
    """Examples in memory, read as those of TFDS are."""

    def __getitems__(self, places):
        return [self[place] for place in places]


UNREADABLE = ({"image": b"no photo"}, "example 2: cannot be decoded \\(no format that")


@pytest.mark.parametrize(
    ("broken", "text", "workers"),
    [
        (*UNREADABLE, 0),
        pytest.param(*UNREADABLE, 1, marks=pytest.mark.slow),  # starting a worker takes seconds
        ({"label": -1}, "example 2: label -1 is not in its classes", 0),
        ({"label": 10}, "example 2: label 10 is not in its classes", 0),
    ],
)
def test_a_broken_example_is_named(broken, text, workers):
    examples = Listed(example for _, example in fake_imagenet.examples(4, 0))
    examples[2].update(broken)
    photos = Photos("train", examples, "image", "label", num_classes=10)
    split, said = StreamedSplit(photos, image_size=SIZE, workers=workers), f"split 'train', {text}"
    with pytest.raises(DataError, match=said) as caught:
        epoch_of(split, batch_size=2, devices=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=said):
        _ = StreamedSplit(photos, image_size=SIZE, workers=0).labels


def test_what_cannot_be_streamed(folder, tmp_path):
    with pytest.raises(DataError, match=r"'digits': cannot be streamed \(data.image_size=16\)"):
        load("digits", seed=0, validation_examples=6, image_size=16)
    with pytest.raises(DataError, match=r"of different sizes .*; set data\.image_size to stream"):
        load("imagenet2012", data_dir=folder, seed=0, validation_examples=6)
    fake_imagenet.write(tmp_path, train=4, validation=0, test=2)
    with pytest.raises(DataError, match=r"has no labelled split .*, only \['test', 'train'\]"):
        opened(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"could not be prepared in .*\(AssertionError: "):
        opened(str(tmp_path / "empty"))


def test_imagenette_is_streamed_too(tmp_path):
    fake_imagenet.write(tmp_path, train=12, validation=4, name="imagenette")
    dataset = load(
        "imagenette", data_dir=str(tmp_path), seed=0, validation_examples=2, image_size=SIZE
    )
    assert dataset.num_classes == 10
    assert len(epoch_of(dataset.train, batch_size=4)) == 2
    assert len(dataset.test) == 4
