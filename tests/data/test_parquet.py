import pickle
import sys

import numpy as np
import own_data
import pyarrow as pa
import pytest
from pyarrow import parquet

from harp_jax.data import DataError, load, train_batches
from harp_jax.data.crops import centre_crop
from harp_jax.data.parquet import open_parquet

IMAGES = own_data.random_set(classes=3, train=24, test=9)
ENCODED = [own_data.encode(image) for image in IMAGES.x_train]
NAMES = ["cat", "dog", "owl"]


def opened(place, **fields):
    return load(f"parquet:{place}", **({"seed": 0, "validation_examples": 2} | fields))


def refused(place, text, **fields):
    with pytest.raises(DataError, match=text) as caught:
        opened(place, **fields)
    said = str(caught.value)
    assert said.startswith(f"data.name='parquet:{place}': ")
    assert "\n" not in said


def write(path, table, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)


@pytest.fixture
def whole():
    return own_data.table(ENCODED, IMAGES.y_train, names=NAMES)


@pytest.mark.parametrize("names", [None, NAMES])
def test_rows_keep_their_order_over_files_and_row_groups(names, tmp_path):
    own_data.write_parquet(tmp_path, IMAGES, files=3, rows=3, names=names)
    dataset = opened(tmp_path / "*.parquet")
    assert dataset.num_classes == 3
    train, _ = open_parquet(str(tmp_path / "*.parquet"))
    places = [23, 0, 8, 9, 0]
    assert train.read(places) == [(ENCODED[i], IMAGES.y_train[i]) for i in places]
    assert train.read(range(24)) == list(zip(ENCODED, IMAGES.y_train, strict=True))
    assert train.name(9) == f"{tmp_path}/train-00001-of-00003.parquet, row 1"
    sent = pickle.dumps(train)  # to a worker, without what was read last
    assert pickle.loads(sent).read(places) == train.read(places)
    assert not any(image in sent for image in ENCODED)


@pytest.mark.parametrize("label", ["labels", "fine_label"])
def test_other_names_of_columns(label, tmp_path):
    own_data.write_parquet(tmp_path, IMAGES, image="img", label=label)
    np.testing.assert_array_equal(opened(tmp_path / "*").test.images, IMAGES.x_test)


def test_files_may_name_their_columns_differently(tmp_path):
    whole = own_data.table(ENCODED, IMAGES.y_train)
    write(tmp_path / "train-0.parquet", whole.slice(0, 12))
    write(tmp_path / "train-1.parquet", whole.slice(12).rename_columns(["img", "labels"]))
    write(tmp_path / "test-0.parquet", whole)
    train, _ = open_parquet(str(tmp_path))
    assert train.read(range(24)) == list(zip(ENCODED, IMAGES.y_train, strict=True))


def test_files_that_name_other_classes(tmp_path, whole):
    write(tmp_path / "train-0.parquet", whole)
    write(tmp_path / "train-1.parquet", own_data.table(ENCODED, IMAGES.y_train))
    write(tmp_path / "test-0.parquet", whole)
    refused(tmp_path, r"train-1\.parquet names None classes and .*train-0\.parquet 3; all must")


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": 3}}'])
def test_metadata_of_another_form_is_left_out(metadata, tmp_path, whole):
    for split in ("train", "test"):
        changed = whole.replace_schema_metadata({b"huggingface": metadata})
        write(tmp_path / f"{split}.parquet", changed)
    assert opened(tmp_path).num_classes == 3


def test_fine_labels_stand_beside_coarse_ones(tmp_path, whole):
    both = whole.rename_columns(["img", "fine_label"]).append_column("coarse_label", [[0] * 24])
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", both)
    np.testing.assert_array_equal(opened(tmp_path / "*").test.labels, IMAGES.y_train)


def test_a_plain_column_of_bytes(tmp_path):
    for split in ("train", "test"):
        plain = pa.table({"image": pa.array(ENCODED), "label": pa.array(IMAGES.y_train, pa.int8())})
        write(tmp_path / f"{split}.parquet", plain)
    np.testing.assert_array_equal(opened(tmp_path / "*").test.images, IMAGES.x_train)


@pytest.mark.parametrize("place", ["", "**/*.parquet", "set/*/*.parquet"])
def test_splits_by_folder(place, tmp_path, whole):
    for split in ("train", "test", "extra"):
        write(tmp_path / "set" / split / "0000.parquet", whole)
    dataset = opened(tmp_path / place)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [22, 2, 24]


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_without_labels_in_test_another_split_is_test(name, tmp_path, whole):
    write(tmp_path / "train-0.parquet", whole)
    write(tmp_path / f"{name}-0.parquet", whole.slice(0, 6))
    assert len(opened(tmp_path).test) == 6
    write(tmp_path / "test-0.parquet", own_data.table(ENCODED, [-1] * 24, names=NAMES))
    assert len(opened(tmp_path).test) == 6


def test_one_channel_if_asked_for(tmp_path):
    own_data.write_parquet(tmp_path, own_data.random_set(channels=1))
    assert opened(tmp_path, grey=True).image_shape == (8, 8, 1)


def test_streaming(tmp_path):
    own_data.write_parquet(tmp_path, IMAGES)
    dataset = opened(tmp_path, image_size=4, validation_examples=0)
    assert {image.tobytes() for image in dataset.train.images} == {
        centre_crop(encoded, 4).tobytes() for encoded in ENCODED
    }
    np.testing.assert_array_equal(dataset.test.labels, IMAGES.y_test)
    batches = list(train_batches(dataset.train, seed=0, epoch=0, batch_size=8, devices=1))
    assert sorted(np.concatenate([batch["labels"].ravel() for batch in batches])) == sorted(
        IMAGES.y_train
    )
    again = opened(f"{tmp_path}/*.parquet", image_size=4, validation_examples=0)
    assert again.train.digest() == dataset.train.digest() != dataset.test.digest()


@pytest.mark.slow  # starting a worker takes seconds
def test_worker_processes_change_nothing(tmp_path):
    own_data.write_parquet(tmp_path, IMAGES)
    alone, shared = (opened(tmp_path, image_size=4, workers=workers) for workers in (0, 1))
    np.testing.assert_array_equal(shared.train.images, alone.train.images)


def test_no_file_matches(tmp_path):
    refused(tmp_path / "*.parquet", r"no file matches '.*\*\.parquet'; expected train-\*\.parquet")


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split(missing, tmp_path):
    own_data.write_parquet(tmp_path, IMAGES)
    for path in tmp_path.glob(f"{missing}-*"):
        path.unlink()
    refused(tmp_path, rf"has no (labelled )?split .*{missing}.* in 2 files; the names of files")


def change(tmp_path, column, values=None):
    """Replaces a column of the second file, or drops it."""
    own_data.write_parquet(tmp_path, IMAGES, names=NAMES)
    path = tmp_path / "train-00001-of-00002.parquet"
    table = parquet.read_table(path)
    place = table.schema.get_field_index(column)
    changed = table.remove_column(place)
    if values is not None:
        changed = changed.add_column(place, column, values)
    write(path, changed)


LABELS = IMAGES.y_train[12:]
BYTES = pa.struct([("bytes", pa.binary())])
BAD = {
    "dropped images": ("image", None, r"00001-of-00002\.parquet has the columns of bytes \[\]"),
    "dropped labels": ("label", None, r"has the columns \['image'\]; needed is one of label, "),
    "float labels": (
        "label",
        [LABELS / 1.0],
        r": label is of type float64; allowed are whole",
    ),
    "text": ("label", [list("abcabcabcabc")], r": label is of type object; allowed are whole"),
    "null labels": ("label", [[None, *LABELS[1:].tolist()]], r"label is missing in 1 rows"),
    "a class too many": ("label", [LABELS + 1], r"train labels go from 0 to 3; allowed are 0 to 2"),
    "no bytes": (
        "image",
        pa.array([{"bytes": None}] + [{"bytes": each} for each in ENCODED[13:]], BYTES),
        r"00001-of-00002\.parquet, row 0 has no bytes of an image",
    ),
    "a broken image": (
        "image",
        pa.array([{"bytes": each} for each in [*ENCODED[12:16], b"x", *ENCODED[17:]]], BYTES),
        r"00001-of-00002\.parquet, row 4 cannot be decoded",
    ),
    "another size": (
        "image",
        pa.array(
            [{"bytes": own_data.encode(IMAGES.x_train[0][:5])}]
            + [{"bytes": each} for each in ENCODED[13:]],
            BYTES,
        ),
        r"00001-of-00002\.parquet, row 0 is 5x8 and .*00000-of-00002\.parquet, row 0 8x8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_columns_are_named(kind, tmp_path):
    column, values, text = BAD[kind]
    change(tmp_path, column, values if values is None else pa.chunked_array(values))
    refused(tmp_path, text)


def test_two_columns_of_images(tmp_path, whole):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", whole.append_column("mask", whole.column("image")))
    refused(tmp_path, r"has the columns of bytes \['image', 'mask'\]")


def test_a_class_name_without_images(tmp_path):
    own_data.write_parquet(tmp_path, IMAGES, names=[*NAMES, "yak"])
    refused(tmp_path, "train has no image of class 3; allowed are 0 to 3, each at least once")


def test_a_test_class_that_train_lacks(tmp_path):
    own_data.write_parquet(tmp_path, IMAGES._replace(y_test=IMAGES.y_test + 1))
    refused(tmp_path, "test has the label 3, which train lacks; allowed are 0 to 2")


@pytest.mark.parametrize("keep", [0, 3, -20])
def test_a_file_that_is_cut_short(keep, tmp_path):
    own_data.write_parquet(tmp_path, IMAGES)
    path = tmp_path / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, r"train-00001-of-00002\.parquet cannot be read as Parquet \(.+\)$")


def test_a_damaged_part_is_found_where_it_is_read(tmp_path):
    own_data.write_parquet(tmp_path, IMAGES)
    path = tmp_path / "train-00000-of-00002.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    refused(tmp_path, r"train-00000-of-00002\.parquet cannot be read as Parquet \(.+\)$")


def test_a_file_without_rows(tmp_path, whole):
    write(tmp_path / "train.parquet", whole)
    write(tmp_path / "test.parquet", whole.slice(0, 0))
    refused(tmp_path, r"test\.parquet has no rows")


def test_without_pyarrow(tmp_path, monkeypatch):
    own_data.write_parquet(tmp_path, IMAGES)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    refused(tmp_path, r"needs pyarrow: pip install 'harp_jax\[parquet\]'")
