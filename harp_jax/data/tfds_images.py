"""Image classification sets of TensorFlow Datasets, read without TensorFlow.

TensorFlow is needed once, to prepare a set: to unpack the archive and to write ArrayRecord files.
Reading these files needs only `tensorflow_datasets`. Prepare the set before a run of several
processes: they would all write the same files at once.
"""

import importlib.util
import itertools
import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from harp_jax.data.photos import Photos
from harp_jax.data.splits import DataError, Source, Split
from harp_jax.data.streaming import StreamedSplit
from harp_jax.names import hint

_LOGGER = logging.getLogger(__name__)

_INFO, _SHOWN = "dataset_info.json", 20  # of each prepared version; names of sets in a message
_READ_TOGETHER = 1024  # single records take 3 times as long, or more on a remote disk


class UnknownSetError(DataError):
    """Raised if TensorFlow Datasets refuses a name; the message lacks what is allowed."""


def read_tfds(name: str, data_dir: str | None) -> Source:
    """Loads a set of TensorFlow Datasets into memory; prepares it first if needed.

    Args:
        name: Name for `tfds.builder`, such as 'cifar10', 'svhn_cropped' or 'cifar10:3.0.2'.
        data_dir: Folder of prepared sets, a path or gs://; None means ~/tensorflow_datasets.

    Returns:
        The splits 'train' and 'test', decoded.

    Raises:
        DataError: If the set is unknown, cannot be prepared, is not an image classification set
            (uint8) with those splits, or has images of different sizes.
    """
    builder, image_key, label_key = _prepared(name, data_dir)
    num_classes = builder.info.features[label_key].num_classes
    train, test = (
        _decode(_data_source(builder, split), split, image_key, label_key)
        for split in ("train", "test")
    )
    for split, part in (("train", train), ("test", test)):
        if part.labels.min() < 0 or part.labels.max() >= num_classes:
            raise DataError(f"split {split!r} has labels outside [0, {num_classes}): unlabelled")
    if train.images.shape[1:] != test.images.shape[1:]:
        raise _sizes_differ(train.images.shape[1:], test.images.shape[1:])
    return Source(num_classes, train=train, test=test, version=_version(builder))


def stream_tfds(name: str, data_dir: str | None, *, image_size: int, workers: int) -> Source:
    """Opens a set of TensorFlow Datasets for streaming; prepares it first if needed.

    Args:
        name: Name for `tfds.builder`, such as 'imagenet2012' or 'imagenette'.
        data_dir: Folder of prepared sets, a path or gs://; None means ~/tensorflow_datasets.
        image_size: Side of the squares to which images are cropped, in pixels.
        workers: Number of processes that decode; 0 decodes in a thread of this process.

    Returns:
        The split 'train', and as test split 'test', or 'validation' if 'test' is missing or has no
        labels.

    Raises:
        DataError: If the set is unknown, cannot be prepared, or is not an image classification set
            (uint8) with those splits.
    """
    import tensorflow_datasets as tfds

    builder, image_key, label_key = _prepared(name, data_dir)
    num_classes = builder.info.features[label_key].num_classes
    encoded = {image_key: tfds.decode.SkipDecoding()}

    def photos(split: str) -> Photos:
        source = _data_source(builder, split, encoded)
        if len(source) == 0:
            raise DataError(f"split {split!r} is empty")
        return Photos(split, source, image_key, label_key, num_classes, _version(builder))

    train, test = (
        StreamedSplit(part, image_size=image_size, workers=workers)
        for part in (photos("train"), _labelled_test(builder, photos))
    )
    return Source(num_classes, train=train, test=test, version=_version(builder))


def is_prepared(name: str, data_dir: str | None) -> bool:
    """Returns whether a set of TensorFlow Datasets can be read without the network.

    Args:
        name: See `read_tfds`.
        data_dir: See there.
    """
    import tensorflow_datasets as tfds

    core: Any = tfds.core  # its modules are loaded at run time
    root = epath.Path(data_dir or core.constants.DATA_DIR).expanduser()
    folder = root / re.split("[:/]", name)[0]
    # Looked for first: the builder of a set that is not there asks a server, for minutes if it
    # cannot reach that.
    versions = itertools.chain(*(folder.glob(f"{each}/dataset_info.json") for each in ("*", "*/*")))
    return any(versions) and _builder(name, data_dir).is_prepared()


def _version(builder: Any) -> str:
    """Returns name, configuration and version of a set, such as 'cifar10:3.0.2'."""
    return str(builder.info.full_name).replace("/", ":")


def _labelled_test(builder: Any, photos: Callable[[str], Photos]) -> Photos:
    """Opens the first of 'test' and 'validation' that has labels."""
    for split in ("test", "validation"):
        if split not in builder.info.splits:
            continue
        found = photos(split)
        ((_, label),) = found.read([0])
        if label >= 0:  # TFDS stores -1 where labels were not published
            _LOGGER.info("%s: tested on its split %r", builder.name, split)
            return found
    raise DataError(
        f"has no labelled split 'test' or 'validation', only {sorted(builder.info.splits)}"
    )


def _prepared(name: str, data_dir: str | None) -> tuple[Any, str, str]:
    """Returns the builder of a prepared set and its keys of images and labels."""
    builder = _builder(name, data_dir)
    image_key, label_key = _supervised_keys(builder)
    if not builder.is_prepared():
        if _is_misspelt(data_dir):
            raise DataError(
                f"not prepared, and data.directory={data_dir!r} is no folder; make it to prepare"
                " the set there"
            )
        _prepare(builder)
    return builder, image_key, label_key


def _is_misspelt(data_dir: str | None) -> bool:
    """Returns whether a path was given at which there is no folder; buckets have no folders."""
    if data_dir is None or "://" in data_dir:
        return False
    return not epath.Path(data_dir).expanduser().is_dir()


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and not needed for bundled sets

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise UnknownSetError(f"unknown; {_prepared_in(name, data_dir)}") from error
    except (AssertionError, ImportError, OSError, RuntimeError, ValueError) as error:
        there = _prepared_in(name, data_dir)
        raise UnknownSetError(f"refused ({_first_line(error)}); {there}") from error


def _prepared_in(name: str, data_dir: str | None) -> str:
    """Says which folder was searched for prepared sets, and what of the set is in it."""
    from tensorflow_datasets.core import constants

    folder = epath.Path(constants.DATA_DIR if data_dir is None else data_dir)
    folder = folder.expanduser()
    place = f"{folder}, which is searched where data.directory is unset,"
    if data_dir is not None:
        place = f"data.directory={data_dir!r}"
    wanted = re.split("[:/]", name)[0]
    try:
        if not folder.is_dir():
            return f"{place} is no folder"
        sets = sorted(each.name for each in folder.iterdir() if each.is_dir())
        sets = [name for name in sets if name != "downloads"]
        if wanted not in sets:
            near = hint(wanted, sets)
            found = ", ".join(sets[:_SHOWN]) + (", ..." if len(sets) > _SHOWN else "")
            return f"{near}{place} has {found or 'no sets'}"
        versions = {each.parent.relative_to(folder) for each in _infos(folder / wanted)}
    except OSError as error:
        return f"{place} cannot be read ({error.strerror or error})"
    found = ", ".join(str(each).replace("/", ":") for each in sorted(versions, key=_in_order))
    return f"{place} has {found or f'no version of {wanted}'}"


def _infos(folder: epath.Path) -> list[epath.Path]:
    """Returns the descriptions of a set's versions: in its folder, or in those of its variants."""
    return [*folder.glob(f"*/{_INFO}"), *folder.glob(f"*/*/{_INFO}")]


def _in_order(path: epath.Path) -> list[tuple[int, str]]:
    """Orders names by the numbers in them, 9.0.0 before 10.0.0."""
    return [(int(part or 0), text) for text, part in re.findall(r"(\D*)(\d*)", str(path))]


def _supervised_keys(builder: Any) -> tuple[str, str]:
    import tensorflow_datasets as tfds

    features, keys = builder.info.features, builder.info.supervised_keys
    if isinstance(keys, tuple) and len(keys) == 2 and all(isinstance(key, str) for key in keys):
        image, label = (features[key] for key in keys)
        is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
        if is_image and isinstance(label, tfds.features.ClassLabel):
            return keys
    raise DataError(
        f"{builder.name} of TensorFlow Datasets is not a set of 8-bit images with one class each"
    )


def _prepare(builder: Any) -> None:
    import tensorflow_datasets as tfds

    # Checked first: without TensorFlow, TFDS would fail only after the download.
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(
            f"not prepared in {builder.data_dir}, and preparing it needs TensorFlow: "
            "pip install 'harp_jax[prepare]'"
        )
    # Logged first, because callers cannot set how often TFDS retries a server.
    _LOGGER.info(
        "preparing %s in %s: downloading it, once; TensorFlow Datasets tries a server that it"
        " cannot reach for minutes before it gives up",
        builder.name,
        builder.data_dir,
    )
    # The public bucket has these sets only as TFRecord files.
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:  # TFDS raises anything here, from AssertionError to requests' own
        raise DataError(
            f"could not be prepared in {builder.data_dir} ({_first_line(error)})"
        ) from error


def _data_source(builder: Any, split: str, decoders: Any = None) -> Any:
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        raise DataError(
            f"prepared in {builder.data_dir} as {builder.info.file_format.value}, which needs "
            "TensorFlow to read; name another data_dir, or delete that folder to prepare it again"
        ) from error
    except (KeyError, ValueError) as error:
        raise DataError(
            f"has no split {split!r}, only {sorted(builder.info.splits)}; 'train' and 'test' "
            "are needed"
        ) from error


def _decode(source: Any, split: str, image_key: str, label_key: str) -> Split:
    count = len(source)
    if count == 0:
        raise DataError(f"split {split!r} is empty")
    shape = source[0][image_key].shape
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int32)
    # `disable=None`: no bar where the output is not a terminal.
    with tqdm(total=count, desc=f"decode {split}", unit="image", disable=None) as bar:
        for start in range(0, count, _READ_TOGETHER):
            places = range(start, min(start + _READ_TOGETHER, count))
            for place, example in zip(places, source.__getitems__(places), strict=True):
                if example[image_key].shape != shape:
                    raise _sizes_differ(shape, example[image_key].shape)
                images[place] = example[image_key]
                labels[place] = example[label_key]
            bar.update(len(places))
    return Split(images, labels)


def _sizes_differ(one: tuple[int, ...], other: tuple[int, ...]) -> DataError:
    return DataError(
        f"images of different sizes ({one} and {other}); set data.image_size to stream them"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
