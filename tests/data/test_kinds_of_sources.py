"""What all kinds of a user's own files have in common."""

import pathlib
import sys
import tempfile

import numpy as np
import own_data
import pytest
import runs
from hypothesis import given, settings
from hypothesis import strategies as st

from harp_jax.data import DataError, load
from harp_jax.data.datasets import SOURCES
from harp_jax.run import experiment
from harp_jax.workdir.identity import PATHS

WRITERS = {
    "npz": own_data.write_npz,
    "folder": own_data.write_folder,
    "parquet": own_data.write_parquet,
    "cifar": own_data.write_cifar,
    "cifar, pickled": own_data.write_pickled_cifar,
    "svhn": own_data.write_svhn,
    "idx": own_data.write_idx,
}
ONE_SIZE = ("cifar", "cifar, pickled", "svhn")  # 32x32x3, ten classes


def fitting(kind, **fields):
    """A random set that a kind of files can hold."""
    return own_data.random_set(**(fields | ({"size": (32, 32)} if kind in ONE_SIZE else {})))


def assert_holds(dataset, images, kind):
    """All examples are there, test in its order; idx is grey."""
    pixels = images.x_test[..., :1] if kind == "idx" else images.x_test
    np.testing.assert_array_equal(dataset.test.images, pixels)
    np.testing.assert_array_equal(dataset.test.labels, images.y_test)
    pixels = images.x_train[..., :1] if kind == "idx" else images.x_train
    parts = (dataset.train, dataset.validation)
    found = [row for part in parts for row in zip(part.images, part.labels, strict=True)]
    expected = zip(pixels, images.y_train, strict=True)
    assert sorted((image.tobytes(), int(label)) for image, label in found) == sorted(
        (image.tobytes(), int(label)) for image, label in expected
    )


def test_every_kind_is_here_and_may_move_under_a_run():
    assert {f"{name.partition(',')[0]}:" for name in WRITERS} == set(SOURCES)
    assert set(PATHS["data.name"]) == set(SOURCES)
    for prefix, kind in SOURCES.items():
        assert kind.form.startswith(prefix)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_read(kind, data):
    classes = 10 if kind in ONE_SIZE else data.draw(st.integers(2, 12))
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    images = fitting(
        kind,
        size=size,
        classes=classes,
        train=5 * data.draw(st.integers(4, 8)),
        test=data.draw(st.integers(classes, 20)),
        seed=data.draw(st.integers(0, 99)),
    )
    with tempfile.TemporaryDirectory() as folder:
        name = WRITERS[kind](pathlib.Path(folder), images)
        dataset = load(name, seed=0, validation_examples=3)
    assert dataset.num_classes == classes
    assert dataset.image_shape[:2] == images.x_train.shape[1:3]
    assert [len(part) for part in (dataset.validation, dataset.test)] == [3, len(images.y_test)]
    assert_holds(dataset, images, kind)


STREAMED = {"data.image_size": 8}
IN_ANY_SUITE = (("npz", {}), ("folder", STREAMED))  # of arrays in memory, and of photos


# Each compiles its programs for images of other sizes; `load` is tested with all kinds above.
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param(*case, marks=() if case in IN_ANY_SUITE else pytest.mark.slow)
        for case in (
            *((kind, {}) for kind in WRITERS if kind != "idx"),
            *((kind, STREAMED) for kind in ("folder", "parquet")),
        )
    ],
)
def test_a_run_of_one_epoch(kind, fields, tmp_path):
    name = WRITERS[kind](tmp_path, fitting(kind, train=80, test=20))
    fields = {
        "data.name": name,
        "data.validation_examples": 16,
        "batch_size": 32,
        "evaluate.batch_size": 32,
        "evaluate.run": ("fgsm",),
        "loss": "natural",  # compiles fast
        "attack.steps": 1,
        "pretrain.epochs": 1,
        "stages": ("pretrain", "evaluate"),
        **fields,
    }
    experiment.run(runs.digits(**fields), tmp_path / "run")
    (row,) = runs.results(tmp_path / "run")["rows"]
    assert row["images"] == 20
    (epoch,) = runs.metrics(tmp_path / "run", "pretrain")
    assert epoch["step"] == 2
    assert np.isfinite(epoch["train"]["loss"])


@pytest.mark.slow
def test_nothing_of_tensorflow_is_imported(tmp_path):
    names = []
    for kind, write in WRITERS.items():
        (tmp_path / kind).mkdir()
        names.append(write(tmp_path / kind, fitting(kind)))
    code = (
        "import sys, harp_jax.main\n"
        "from harp_jax.data import load\n"
        f"for name in {names!r}: load(name, seed=0, validation_examples=3)\n"
        "print(sorted(name for name in sys.modules if name.startswith('tensorflow')))"
    )
    found = runs.call([sys.executable, "-W", "error", "-c", code])
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


@pytest.mark.parametrize("kind", WRITERS)
def test_a_place_that_is_not_there(kind, tmp_path):
    prefix = WRITERS[kind](tmp_path, fitting(kind)).partition(":")[0]
    for place in ("", str(tmp_path / "nowhere")):
        name = f"{prefix}:{place}"
        with pytest.raises(DataError, match=r": no (file|folder).*; expected ") as caught:
            load(name, seed=0, validation_examples=3)
        text = str(caught.value)
        assert text.startswith(f"data.name={name!r}: ")
        assert "\n" not in text


def test_an_unknown_prefix_is_refused_with_all_that_are_allowed():
    with pytest.raises(DataError, match=r"data\.name='pqt:x'") as caught:
        load("pqt:x", seed=0, validation_examples=3)
    for kind in SOURCES.values():
        assert repr(kind.form) in str(caught.value)


@pytest.mark.parametrize("kind", ["npz", "cifar", "svhn", "idx"])
@pytest.mark.parametrize("field", [{"grey": True}, {"image_size": 4}])
def test_arrays_are_neither_streamed_nor_turned_grey(kind, field, tmp_path):
    name = WRITERS[kind](tmp_path, fitting(kind))
    ((setting, value),) = field.items()
    allowed = rf"data\.{setting}={value}\); allowed are folder:DIR, parquet:GLOB"
    with pytest.raises(DataError, match=allowed):
        load(name, seed=0, validation_examples=3, **field)
