"""Reading arrays of images and labels from one .npz file of NumPy."""

import zipfile
import zlib
from typing import Any

import numpy as np
from etils import epath

from harp_jax.data.checks import count_classes, pixels, same_count, whole_labels
from harp_jax.data.images import UNREADABLE, decode
from harp_jax.data.splits import DataError, Source, Split, hold_out

# Names of train images, train labels, test images and test labels.
_NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
_ONE_SPLIT = ("images", "labels")
# Encoded images: all files of a split one after the other, and the bytes of each.
_ENCODED = tuple(f"{split}_{what}" for split in ("train", "test") for what in ("jpegs", "sizes"))
_TEST_FRACTION = 0.2
_TEST_SEED = 0  # fixed, and not the run's seed: the test split is the same in every run
_UNREADABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error)


def read_npz(file: str) -> Source:
    """Reads train and test from the arrays of one .npz file; pickled objects are refused.

    Args:
        file: File with the arrays `x_train`, `y_train`, `x_test` and `y_test`; or `train_images`,
            `train_labels`, `test_images` and `test_labels`; or, of a set that is not split,
            `images` and `labels`, of which 20 % of each class become the test split, the same in
            every run. `harp_jax.data.checks` says which images and labels are allowed. Encoded
            images of one size can be in `train_jpegs` and `test_jpegs`, uint8, one file after the
            other, with the bytes of each in `train_sizes` and `test_sizes`, beside `train_labels`
            and `test_labels`.

    Returns:
        Both splits; the number of classes is the largest label plus one.

    Raises:
        DataError: If the file or an array is missing, damaged, or of another form; names it.
    """
    path = epath.Path(file).expanduser()
    if not file or not path.is_file():
        raise DataError(f"no file {file!r}; expected one with {_expected()}")
    try:
        with path.open("rb") as opened:
            found = np.load(opened, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ValueError("one array, no .npz")
            return _read(found, path)
    except DataError:
        raise
    except _UNREADABLE as error:
        reason = "no .npz" if "contains pickled" in str(error) else _first_line(error)
        raise DataError(f"{path} cannot be read ({reason})") from error


def _read(arrays: Any, path: epath.Path) -> Source:
    present = set(arrays.files)
    if present.issuperset(_ENCODED):
        arrays = _decoded(arrays, path)
        present = set(arrays.files)
    names = max(_NAMES, key=lambda names: len(present.intersection(names)))
    if not present.intersection(names) and present.issuperset(_ONE_SPLIT):
        whole = _split(arrays, path, *_ONE_SPLIT)
        count_classes(whole.labels, whole.labels)
        per_class = np.rint(np.bincount(whole.labels) * _TEST_FRACTION).astype(np.int32)
        if per_class.min() == 0:
            raise DataError(
                f"{path} has {np.bincount(whole.labels).min()} images of class "
                f"{per_class.argmin()}; allowed are at least 3, of which {_TEST_FRACTION:.0%} "
                "are for test"
            )
        return hold_out(whole, per_class, seed=_TEST_SEED)
    for name in names:
        if name not in present:
            raise DataError(f"{path} has no array {name!r}, only {sorted(present)}; {_expected()}")
    train, test = _split(arrays, path, *names[:2]), _split(arrays, path, *names[2:])
    if train.image_shape != test.image_shape:
        raise DataError(
            f"{path}: {names[0]} has images of {train.image_shape} and {names[2]} of "
            f"{test.image_shape} (height, width, channels); all must be alike"
        )
    return Source(count_classes(train.labels, test.labels), train=train, test=test)


class _Decoded(dict[str, np.ndarray]):
    """Arrays by name, as an opened .npz file gives them."""

    @property
    def files(self) -> list[str]:
        return list(self)


def _decoded(arrays: Any, path: epath.Path) -> _Decoded:
    """Decodes the images of both splits."""
    found = _Decoded({name: arrays[name] for name in arrays.files if name not in _ENCODED})
    for split in ("train", "test"):
        stream, sizes = (arrays[f"{split}_{what}"] for what in ("jpegs", "sizes"))
        whole = stream.dtype == np.uint8 and sizes.dtype.kind in "iu" and sizes.min(initial=1) > 0
        if not whole or sizes.sum(dtype=np.int64) != len(stream):
            raise DataError(
                f"{path}: {split}_sizes are not the bytes of the files in {split}_jpegs, uint8"
            )
        ends = np.cumsum(sizes, dtype=np.int64)
        images = []
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            try:
                images.append(decode(stream[end - size : end].tobytes()))
            except UNREADABLE as error:
                raise DataError(f"{path}: image {number} of {split}_jpegs ({error})") from error
        shapes = sorted({image.shape for image in images})
        if len(shapes) != 1:
            raise DataError(f"{path}: {split}_jpegs has images of {shapes}; allowed is one size")
        found[f"{split}_images"] = np.stack(images)
    return found


def _split(arrays: Any, path: epath.Path, images: str, labels: str) -> Split:
    found = pixels(arrays[images], f"{path}: {images}")
    numbers = whole_labels(arrays[labels], f"{path}: {labels}")
    same_count(len(found), len(numbers), f"{path}: {images}", labels)
    return Split(found, numbers)


def _expected() -> str:
    return " or ".join(", ".join(names) for names in (*_NAMES, _ONE_SPLIT))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
