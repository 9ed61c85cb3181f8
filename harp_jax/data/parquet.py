"""Opening Parquet files of encoded images, as data sets on Hugging Face store them."""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from harp_jax.data.checks import count_classes, whole_labels
from harp_jax.data.photos import Photos
from harp_jax.data.splits import DataError

_TRAIN, _TEST = "train", ("test", "validation", "valid", "val")  # the first with labels
_LABELS = ("label", "labels", "fine_label")  # the first of these that is there
_UNLABELLED = -1


def open_parquet(pattern: str) -> tuple[Photos, Photos]:
    """Lists the images of Parquet files; reads their labels, but decodes no image.

    The split of a file is the beginning of its name ('train-00000-of-00002.parquet') or the name of
    its folder ('train/0000.parquet'). Files are sorted by name. Images are the one column of bytes,
    or of a struct with the field `bytes`; labels the column `label`, `labels` or `fine_label`. The
    number of classes is that of the class names in the files' metadata, or the largest label plus
    one.

    Args:
        pattern: Glob of local files, '**' for any folders; or a folder, for all files below it.

    Returns:
        Encoded images of train, and of the first of test, validation, valid and val with labels.

    Raises:
        DataError: If no file matches, a split is missing, a file is damaged, or columns or labels
            are not as above.
    """
    files = _matching(pattern)
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file), []).append(file)
    train = _rows(_TRAIN, by_split, files)
    for name in _TEST:
        if name in by_split:
            test = _rows(name, by_split, files)
            if (test.labels != _UNLABELLED).any():
                break
    else:
        raise DataError(
            f"has no labelled split of {', '.join(_TEST)} in {len(files)} files; {_by_name(files)}"
        )
    count = count_classes(train.labels, test.labels, declared=train.num_classes)
    return _photos(_TRAIN, train, count), _photos(name, test, count)


@dataclass(frozen=True)
class _Group:
    """A row group: a part of a file that is read at once."""

    file: str
    column: str  # of images
    number: int
    first: int  # row of the file


@dataclass
class _Rows:
    """Rows of several files, with the random access that `Photos` needs.

    Attributes:
        groups: All row groups, in order.
        starts: First row of each group, over all files, and the number of rows.
        labels: Labels of all rows.
        num_classes: Number of class names; None if the files have none.
        version: Digest of the files' names and sizes.
    """

    groups: list[_Group]
    starts: Int64[np.ndarray, " bounds"]
    labels: Int32[np.ndarray, " rows"]
    num_classes: int | None
    version: str
    _last: tuple[int, Any] | None = field(default=None, repr=False)  # read in order, each once

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, bytes | int]]:
        found: list[Any] = [None] * len(places)
        groups = self._group(np.asarray(places))
        for group in np.unique(groups):
            images = self._images(int(group))
            for i in np.flatnonzero(groups == group):
                place = int(places[int(i)])
                value = images[place - int(self.starts[group])].as_py()
                encoded = value.get("bytes") if isinstance(value, dict) else value
                if not encoded:
                    raise DataError(f"{self.name(place)} has no bytes of an image")
                found[i] = {"image": encoded, "label": int(self.labels[place])}
        return found

    def name(self, place: int) -> str:
        index = int(self._group(np.asarray([place]))[0])
        group = self.groups[index]
        return f"{group.file}, row {group.first + place - int(self.starts[index])}"

    def _group(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.starts, places, "right") - 1

    def _images(self, index: int) -> Any:
        last = self._last
        if last is None or last[0] != index:
            group = self.groups[index]
            with _opened(group.file) as file:
                table = file.read_row_group(group.number, columns=[group.column])
            self._last = last = index, table.column(0)
        return last[1]


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Opens a Parquet file; what pyarrow raises inside becomes a DataError that names the file."""
    try:
        from pyarrow.parquet import ParquetFile  # slow to import, and not needed for other sets
    except ImportError as error:
        raise DataError("needs pyarrow: pip install 'harp_jax[parquet]'") from error
    try:
        with ParquetFile(path) as file:
            yield file
    except DataError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as Parquet ({reason})") from error


def _matching(pattern: str) -> list[str]:
    """Returns the files that a glob matches, sorted by folder and name."""
    if not pattern:
        raise DataError("no files named; expected a glob such as DIR/*.parquet")
    wanted = os.path.expanduser(pattern)
    if os.path.isdir(wanted):
        wanted = os.path.join(glob.escape(wanted), "**", "*.parquet")
    files = sorted(path for path in glob.glob(wanted, recursive=True) if os.path.isfile(path))
    if not files:
        raise DataError(f"no file matches {wanted!r}; expected train-*.parquet and test-*.parquet")
    return files


def _split_of(file: str) -> str:
    path = Path(file)
    for name in (re.split(r"[-_.]", path.name)[0], path.parent.name):
        if name in (_TRAIN, *_TEST):
            return name
    return ""


def _by_name(files: Sequence[str]) -> str:
    return (
        "the names of files or of their folders begin with the split, as in "
        f"train-00000-of-00001.parquet; found is {files[0]!r}"
    )


def _rows(split: str, by_split: dict[str, list[str]], files: Sequence[str]) -> _Rows:
    """Reads labels and layout of the files of a split."""
    if split not in by_split:
        raise DataError(f"has no split {split!r} in {len(files)} files; {_by_name(files)}")
    groups, sizes, labels, counts = [], [], [], []
    digest = hashlib.sha256()
    for path in by_split[split]:
        with _opened(path) as file:
            image, label = _image_column(file.schema_arrow, path), _label_column(file, path)
            counts.append(_count_names(file.schema_arrow, label))
            found = file.read(columns=[label]).column(0)
            if found.null_count:
                raise DataError(f"{path}: {label} is missing in {found.null_count} rows")
            if len(found) == 0:
                raise DataError(f"{path} has no rows")
            labels.append(whole_labels(found.to_numpy(), f"{path}: {label}"))
            first = 0
            for number in range(file.num_row_groups):
                groups.append(_Group(path, image, number, first))
                sizes.append(file.metadata.row_group(number).num_rows)
                first += sizes[-1]
        if counts[-1] != counts[0]:
            raise DataError(
                f"{path} names {counts[-1]} classes and {by_split[split][0]} {counts[0]}; all "
                "must be named in every file"
            )
        digest.update(f"{os.path.basename(path)}\0{os.path.getsize(path)}\0".encode())
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    version = f"parquet {digest.hexdigest()}"
    return _Rows(groups, starts, np.concatenate(labels), counts[0], version)


def _count_names(schema: Any, label: str) -> int | None:
    """Counts the class names in the metadata that Hugging Face writes; None without any."""
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        names = described["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return len(names) if isinstance(names, list) else None


def _image_column(schema: Any, path: str) -> str:
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    found = [column.name for column in schema if holds_bytes(column.type)]
    if len(found) != 1:
        raise DataError(
            f"{path} has the columns of bytes {found} in {schema.names}; allowed is one, the images"
        )
    return found[0]


def _label_column(file: Any, path: str) -> str:
    names = file.schema_arrow.names
    for name in _LABELS:
        if name in names:
            return name
    raise DataError(f"{path} has the columns {names}; needed is one of {', '.join(_LABELS)}")


def _photos(split: str, rows: _Rows, num_classes: int) -> Photos:
    return Photos(split, rows, "image", "label", num_classes, rows.version, rows.name)
