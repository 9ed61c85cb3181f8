"""Opening a folder with one folder of images a class, as torchvision's ImageFolder reads them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from harp_jax.data.checks import count_classes
from harp_jax.data.photos import Photos
from harp_jax.data.splits import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_HIDDEN = "."  # what other programs leave: .ipynb_checkpoints, ._photo.jpg
_TRAIN, _TEST = "train", ("test", "val", "validation")  # the first of these that is there


def open_folder(folder: str) -> tuple[Photos, Photos]:
    """Lists the images of a folder `train/CLASS/...` and `test/CLASS/...`; decodes none.

    Classes are numbered by the sorted names of the folders in `train`, images sorted by path
    within their class, as torchvision does; folders inside a class belong to it. Test images come
    from the classes in turn, so that the first n are as balanced as possible for every n.

    Args:
        folder: Local folder with `train` and `test` (or `val`, or `validation`), each with one
            folder a class. Files with other endings than `EXTENSIONS` are left out, and so is what
            has a name that begins with a dot.

    Returns:
        Encoded images of train and test.

    Raises:
        DataError: If a folder is missing, a class has no image, or train lacks a class of test.
    """
    root = Path(folder).expanduser()
    if not folder or not root.is_dir():
        raise DataError(f"no folder {folder!r}; expected one with train/CLASS and test/CLASS")
    present = [name for name in (_TRAIN, *_TEST) if (root / name).is_dir()]
    if _TRAIN not in present or len(present) < 2:
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise DataError(
            f"{root} has the folders {found[:5]}; needed are {_TRAIN} and one of {', '.join(_TEST)}"
        )
    train_folder, test_folder = root / present[0], root / present[1]
    classes = _classes(train_folder)
    for name in _classes(test_folder):
        if name not in classes:
            raise DataError(
                f"{test_folder / name} is of a class that {train_folder} lacks; allowed are the "
                f"{len(classes)} classes from {classes[0]!r} to {classes[-1]!r}"
            )
    train, test = _files(train_folder, classes), _in_turn(_files(test_folder, classes))
    count = count_classes(train.labels, test.labels, declared=len(classes))
    return _photos(train_folder, train, count), _photos(test_folder, test, count)


@dataclass(frozen=True)
class _Files:
    """Files and their labels, with the random access that `Photos` needs."""

    paths: list[str]
    labels: Int32[np.ndarray, " files"]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, bytes | int]]:
        try:
            images = [Path(self.paths[place]).read_bytes() for place in places]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error
        labels = self.labels[np.asarray(places)].tolist()
        return [
            {"image": image, "label": label} for image, label in zip(images, labels, strict=True)
        ]

    def name(self, place: int) -> str:
        return self.paths[place]


def _classes(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    found = [name for name in found if not name.startswith(_HIDDEN)]
    if not found:
        raise DataError(f"{folder} has no folder; expected one a class")
    return found


def _files(folder: Path, classes: Sequence[str]) -> _Files:
    paths, labels = [], []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue
        found = list(_images(folder / name))
        if not found:
            raise DataError(f"{folder / name} has no image; allowed are {', '.join(EXTENSIONS)}")
        paths += found
        labels += [label] * len(found)
    return _Files(paths, np.array(labels, np.int32))


def _images(folder: Path) -> Iterator[str]:
    """Finds the images in a folder and in those below it, also behind links."""
    walked = []
    for inner, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        if os.path.realpath(inner) in map(os.path.realpath, Path(inner).parents):
            raise DataError(f"{inner} is a link to a folder around it; allowed are links to others")
        walked.append((inner, files))
    for inner, files in sorted(walked):
        for path in (os.path.join(inner, file) for file in sorted(files)):
            hidden = os.path.basename(path).startswith(_HIDDEN)
            if path.lower().endswith(EXTENSIONS) and not hidden:
                if not os.path.isfile(path):
                    raise DataError(f"{path} is no file; allowed are images, and links to them")
                yield path


def _in_turn(files: _Files) -> _Files:
    """Reorders files that are sorted by class: the first of every class, then the second, ..."""
    _, starts, label = np.unique(files.labels, return_index=True, return_inverse=True)
    rank = np.arange(len(files)) - starts[label]
    order = np.lexsort((files.labels, rank))
    return _Files([files.paths[place] for place in order], files.labels[order])


def _photos(folder: Path, files: _Files, num_classes: int) -> Photos:
    found = hashlib.sha256()
    for path in files.paths:
        found.update(f"{os.path.relpath(path, folder)}\0{os.path.getsize(path)}\0".encode())
    version = f"folder {found.hexdigest()}"
    return Photos(folder.name, files, "image", "label", num_classes, version, files.name)
