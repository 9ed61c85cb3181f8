import io
import os
import shutil

import numpy as np
import own_data
import pytest
from PIL import Image

from harp_jax.data import DataError, load, train_batches
from harp_jax.data.crops import centre_crop
from harp_jax.data.folder import EXTENSIONS, open_folder

IMAGES = own_data.random_set(classes=3, train=12, test=6)


@pytest.fixture
def folder(tmp_path):
    own_data.write_folder(tmp_path, IMAGES)
    return tmp_path


def opened(folder, **fields):
    return load(f"folder:{folder}", **({"seed": 0, "validation_examples": 2} | fields))


def refused(folder, text, **fields):
    with pytest.raises(DataError, match=text) as caught:
        opened(folder, **fields)
    said = str(caught.value)
    assert said.startswith(f"data.name='folder:{folder}': ")
    assert "\n" not in said


def listed(folder):
    """Paths below the folder and labels, in the order in which they are read."""
    train, _ = open_folder(str(folder))
    paths = [train.name(place) for place in range(len(train))]
    labels = [label for _, label in train.read(range(len(train)))]
    return [path.removeprefix(f"{folder}/train/") for path in paths], labels


def test_classes_and_images_are_sorted_as_text(tmp_path):
    paths = ["10/b.png", "10/a.PNG", "2/z.png", "2/deep/a.png", "B/a.png", "a/1.png", "a/notes.txt"]
    paths += [".hidden/a.png", "2/._z.png", "B/.ipynb_checkpoints/a.png"]  # left by other programs
    for split in ("train", "test"):
        for path in paths:
            place = tmp_path / split / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(own_data.encode(IMAGES.x_train[0]))
    (tmp_path / "train" / "readme.png").write_bytes(b"beside the classes")
    expected = ["10/a.PNG", "10/b.png", "2/z.png", "2/deep/a.png", "B/a.png", "a/1.png"]
    assert listed(tmp_path) == (expected, [0, 0, 1, 1, 2, 3])


@pytest.mark.parametrize("name", ["val", "validation"])
def test_other_names_of_test(name, tmp_path):
    own_data.write_folder(tmp_path, IMAGES, test=name)
    assert len(opened(tmp_path).test) == 6


def test_test_goes_before_val(folder):
    shutil.copytree(folder / "test" / "class000", folder / "val" / "class000")
    assert len(opened(folder).test) == 6


def test_the_first_images_of_test_are_balanced(tmp_path):
    labels = np.array([2, 2, 2, 0, 1, 1])
    own_data.write_folder(tmp_path, IMAGES._replace(y_test=labels))
    test = opened(tmp_path, test_examples=5).test
    np.testing.assert_array_equal(test.labels, [0, 1, 2, 1, 2])
    np.testing.assert_array_equal(test.images, IMAGES.x_test[[3, 4, 0, 5, 1]])


def test_test_may_lack_a_class_but_keeps_the_numbers_of_the_others(folder):
    shutil.rmtree(folder / "test" / "class001")
    np.testing.assert_array_equal(opened(folder).test.labels, [0, 2, 0, 2])


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_every_ending_is_decoded(ending, folder):
    kind = Image.registered_extensions()[ending]
    options = {"lossless": True} if kind == "WEBP" else {}
    image = IMAGES.x_train[0]
    image = image[..., :1] if ending == ".pgm" else image
    (folder / "train" / "class000" / f"0{ending}").write_bytes(
        own_data.encode(image, kind, **options)
    )
    assert listed(folder)[0][0] == f"class000/0{ending}"
    dataset = opened(folder, validation_examples=0)
    assert len(dataset.train) == 13
    if kind != "JPEG":
        colours = np.broadcast_to(image, (8, 8, 3))
        assert any(np.array_equal(each, colours) for each in dataset.train.images)


def one_image(folder, encoded):
    """What a file in place of a test image is decoded to."""
    (folder / "test" / "class000" / "00000.png").write_bytes(encoded)
    return opened(folder).test.images[0]


def test_greys_become_three_equal_channels(folder):
    grey = IMAGES.x_test[0][..., :1]
    found = one_image(folder, own_data.encode(grey))
    np.testing.assert_array_equal(found, np.repeat(grey, 3, 2))


def saved(image, **options):
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


def test_an_alpha_channel_is_dropped(folder):
    colours = np.concatenate([IMAGES.x_test[0], np.full((8, 8, 1), 9, np.uint8)], 2)
    np.testing.assert_array_equal(
        one_image(folder, saved(Image.fromarray(colours))), IMAGES.x_test[0]
    )


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(100))])
def test_palettes_become_their_colours(transparency, folder):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    picture.putpalette(list(range(200, 0, -1)))
    options = {} if transparency is None else {"transparency": transparency}
    found = one_image(folder, saved(picture, **options))
    np.testing.assert_array_equal(found[0, :2], [[200, 199, 198], [197, 196, 195]])


def test_the_orientation_of_exif_data_is_ignored(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = IMAGES.x_test[0]
    found = one_image(folder, saved(Image.fromarray(image), exif=exif.tobytes()))
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_more_than_8_bits_are_refused(kind, folder):
    deep = np.full((8, 8), 40000, np.uint16)
    (folder / "train" / "class001" / "00001.png").write_bytes(own_data.encode(deep, kind))
    text = r"class001/00001\.png.*cannot be decoded \(pixels of mode 'I(;16)?'; allowed are 8 bits"
    refused(folder, text)
    refused_later = opened(folder, image_size=4)
    with pytest.raises(DataError, match=text):
        _ = refused_later.train.images, refused_later.validation.images


def test_one_channel_if_asked_for(tmp_path):
    grey = own_data.random_set(classes=3, train=12, test=6, channels=1)
    own_data.write_folder(tmp_path, grey)
    assert opened(tmp_path).image_shape == (8, 8, 3)
    dataset = opened(tmp_path, grey=True)
    assert dataset.image_shape == (8, 8, 1)
    np.testing.assert_array_equal(dataset.test.images, grey.x_test)
    text = r"data\.grey=True\); allowed are folder:DIR, .* without data\.image_size"
    refused(tmp_path, text, grey=True, image_size=4)


def test_colours_are_weighed_where_one_channel_is_asked_for(folder):
    expected = Image.fromarray(IMAGES.x_test[0]).convert("L")
    found = opened(folder, grey=True).test.images[0, ..., 0]
    np.testing.assert_array_equal(found, expected)


def test_rectangles_stay(tmp_path):
    own_data.write_folder(tmp_path, own_data.random_set(size=(5, 9), classes=3))
    assert opened(tmp_path).image_shape == (5, 9, 3)


def test_images_of_two_sizes_are_named_or_streamed(folder):
    place = folder / "test" / "class001" / "00001.png"
    place.write_bytes(own_data.encode(IMAGES.x_test[0][:, :6]))
    first = r"train/class000/00000\.png 8x8 \(height x width\)"
    refused(folder, rf"test/class001/00001\.png is 8x6 and .*{first}; .* data\.image_size")
    assert opened(folder, image_size=4).test.images.shape == (6, 4, 4, 3)


def test_streaming_reads_the_files_in_turn_and_keeps_its_digest_where_they_move(folder, tmp_path):
    dataset = opened(folder, image_size=4, validation_examples=0)
    paths, labels = listed(folder)
    np.testing.assert_array_equal(np.sort(dataset.train.labels), labels)
    expected = {centre_crop((folder / "train" / path).read_bytes(), 4).tobytes() for path in paths}
    assert {image.tobytes() for image in dataset.train.images} == expected
    batches = list(train_batches(dataset.train, seed=0, epoch=0, batch_size=4, devices=1))
    assert [batch["images"].shape for batch in batches] == [(1, 4, 4, 4, 3)] * 3
    moved = tmp_path / "moved"
    for split in ("train", "test"):
        shutil.copytree(folder / split, moved / split)
    again = opened(moved, image_size=4, validation_examples=0)
    assert again.identity()["digests"] == dataset.identity()["digests"]
    (moved / "train" / "class000" / "00000.png").write_bytes(
        own_data.encode(IMAGES.x_train[0], "BMP")
    )
    other = opened(moved, image_size=4, validation_examples=0)
    assert other.train.digest() != dataset.train.digest()


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_split(missing, folder):
    shutil.rmtree(folder / missing)
    refused(folder, r"has the folders \[.*\]; needed are train and one of test, val, validation")


def test_a_folder_of_classes_alone(folder):
    refused(folder / "train", r"has the folders \['class000', 'class001', 'class002'\]; needed")


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_class(split, folder):
    for path in (folder / split / "class001").iterdir():
        path.rename(path.with_suffix(".txt"))
    refused(folder, rf"{split}/class001 has no image; allowed are \.jpg, ")


def test_no_class(folder):
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()
    refused(folder, "test has no folder; expected one a class")


def test_one_class(folder):
    for split in ("train", "test"):
        for name in ("class001", "class002"):
            shutil.rmtree(folder / split / name)
    refused(folder, "train has 1 class; allowed are at least 2")


def test_a_class_that_train_lacks(folder):
    (folder / "test" / "class001").rename(folder / "test" / "dogs")
    refused(folder, "test/dogs is of a class that .*train lacks; allowed are the 3 classes from")


@pytest.mark.parametrize("broken", [b"", b"no image", "cut"])
def test_a_broken_image_is_named(broken, folder):
    place = folder / "train" / "class001" / "00004.png"
    if broken == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        broken = own_data.encode(noise)[:-3000]
    place.write_bytes(broken)
    refused(folder, r"train/class001/00004\.png cannot be decoded \([^<]+\)$")
    streamed = opened(folder, image_size=4, validation_examples=0)
    with pytest.raises(DataError, match=r"train/class001/00004\.png: cannot be decoded"):
        _ = streamed.train.images


def test_a_file_that_is_gone(folder):
    dataset = opened(folder, image_size=4, validation_examples=0)
    (folder / "train" / "class001" / "00004.png").unlink()
    with pytest.raises(DataError, match=r"00004\.png cannot be read \(No such file"):
        _ = dataset.train.images


def test_what_is_no_file_is_refused(folder):
    place = next(each for each in (folder / "train").iterdir() if each.is_dir())
    for name, make in (
        ("gone.png", lambda path: path.symlink_to(folder / "nowhere.png")),
        ("pipe.png", os.mkfifo),
    ):
        make(place / name)
        refused(folder, f"{name} is no file; allowed are images, and links to them")
        (place / name).unlink()
    for name in ("one", "two"):  # with two, the ways through them are endless
        (place / name).symlink_to(folder / "train")
    refused(folder, "is a link to a folder around it; allowed are links to others")


def test_no_name_acts_on_a_terminal(folder):
    other = folder / "test" / "z\x1b[31m\n"
    other.mkdir()
    refused(folder, r"z\?\[31m is of a class")
