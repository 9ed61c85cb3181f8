"""Splits too large for memory: photos on disk, decoded by grain's workers as they are needed."""

import contextlib
import functools
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Int, Int32, UInt8
from tqdm import tqdm

from harp_jax.data.crops import centre_crop, random_crop
from harp_jax.data.splits import DataError, Examples, Split

_DECODED_TOGETHER = 64
_BATCHES_AHEAD = 2  # of a thread that decodes in this process
_TO_THE_PARENT_ALONE = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Photos:
    """The encoded photos of a published split.

    Attributes:
        split: its name, for errors.
        source: random access by `source.__getitems__(places)` to examples whose image is bytes.
        image_key: where an example has its image.
        label_key: where it has its class number.
        num_classes: how many classes there are.
        version: the set and its version, which stand for the photos in a digest.
    """

    split: str
    source: Any
    image_key: str
    label_key: str
    num_classes: int
    version: str = ""

    def __len__(self) -> int:
        return len(self.source)

    def read(self, places: Sequence[int]) -> list[tuple[bytes, int]]:
        """The examples at some places, each an encoded image and its class number, unchecked."""
        examples = self.source.__getitems__(places)
        return [(example[self.image_key], int(example[self.label_key])) for example in examples]


class StreamedSplit(Split):
    """A split of photos that stay on disk and are cut to squares as they are read.

    Training goes through `stream`, which holds a few batches. `images` and `labels` are for
    evaluation: the middle of every photo, decoded at first use and held from then on, in every
    process of a run: 3 * image_size**2 bytes a photo, 7.5 GB for ImageNet's 50,000 at 224.
    """

    def __init__(
        self,
        photos: Photos,
        *,
        image_size: int,
        workers: int,
        places: Int[np.ndarray, " examples"] | None = None,
    ):
        """Opens the split; nothing is read.

        Args:
            photos: where they come from.
            image_size: side of the squares, in pixels.
            workers: processes that decode; 0: a thread of this one does.
            places: which of the photos make up the split; None means all, in stored order.
        """
        # Not a dataclass as its parent is: `images` and `labels` are found later.
        self._photos, self._image_size, self._workers = photos, image_size, workers
        self._places = np.arange(len(photos), dtype=np.int32) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"StreamedSplit({len(self)} photos of {self._photos.split!r}, {self.image_shape})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image, with 3 channels whatever the photos have."""
        return self._image_size, self._image_size, 3

    def digest(self) -> str:
        """SHA-256 of the set's version, the split, the places in it and the size; reads nothing."""
        identity = f"{self._photos.version} {self._photos.split} {len(self._photos)}"
        found = hashlib.sha256(f"{identity} {self._image_size}".encode())
        found.update(np.ascontiguousarray(self._places, np.int64).data)
        return found.hexdigest()

    def take(self, places: Int[np.ndarray, " chosen"] | slice) -> "StreamedSplit":
        """The examples at `places`, in that order."""
        return StreamedSplit(
            self._photos,
            image_size=self._image_size,
            workers=self._workers,
            places=self._places[places],
        )

    @property
    def images(self) -> UInt8[np.ndarray, "examples height width channels"]:  # pyright: ignore
        """uint8 [N, image_size, image_size, 3]: the middle of every photo."""
        return self._centre_crops[0]

    @property
    def labels(self) -> Int32[np.ndarray, " examples"]:  # pyright: ignore
        """int32 [N], in [0, num_classes)."""
        return self._centre_crops[1]

    @functools.cached_property
    def _centre_crops(self) -> Examples:
        images = np.empty((len(self), *self.image_shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        parts = np.split(self._places, range(_DECODED_TOGETHER, len(self), _DECODED_TOGETHER))
        done = 0
        # `disable=None`: no bar where the output is not a terminal.
        label = f"decode {self._photos.split}"
        with tqdm(total=len(self), desc=label, unit="image", disable=None) as bar:
            cut = _Cut(self._photos, self._image_size, key=None)
            for part_images, part_labels in _ahead(cut, parts if len(self) else [], self._workers):
                part = slice(done, done + len(part_labels))
                images[part], labels[part] = part_images, part_labels
                done = part.stop
                bar.update(len(part_labels))
        return images, labels

    def stream(
        self, table: Int32[np.ndarray, "steps devices per_device"], *, seed: int, epoch: int
    ) -> Generator[Examples, None, None]:
        """Random crops for training, decoded ahead of their use, a step at a time.

        A crop depends on (seed, epoch, photo) alone: not on the number of workers, processes or
        devices, nor on the step that an epoch is resumed at. With the order of an epoch, which is
        known beforehand, the step is therefore all the state there is, and skipping costs nothing.

        Args:
            table: places in this split, a row for each step.
            seed: of the run, in [0, 2**64).
            epoch: counts from 0.

        Returns:
            Images uint8 [devices, per_device, image_size, image_size, 3] and labels for each step.
            Closing it, or its end, ends the workers.

        Raises:
            DataError: a photo that cannot be decoded or has no label, when its step comes.
        """
        cut = _Cut(self._photos, self._image_size, key=(seed, epoch))
        return _ahead(cut, list(self._places[table]), self._workers)


@dataclass(frozen=True)
class _Cut:
    """Reads photos by their places and cuts them; goes to the workers.

    Attributes:
        photos: where they come from.
        size: side of the squares, in pixels.
        key: (seed, epoch) of random crops; None for the middle.
    """

    photos: Photos
    size: int
    key: tuple[int, int] | None

    def __call__(self, places: Int[np.ndarray, "*shape"]) -> Examples:
        chosen = [int(place) for place in places.flat]
        images = np.empty((len(chosen), self.size, self.size, 3), np.uint8)
        labels = np.empty(len(chosen), np.int32)
        for i, (place, example) in enumerate(zip(chosen, self.photos.read(chosen), strict=True)):
            photo, labels[i] = example
            if not 0 <= labels[i] < self.photos.num_classes:
                raise self._error(place, f"label {labels[i]} is not in its classes")
            try:
                images[i] = self._cut(photo, place)
            except OSError as error:
                raise self._error(place, f"cannot be decoded ({error})") from error
        return images.reshape(*places.shape, *images.shape[1:]), labels.reshape(places.shape)

    def _cut(self, photo: bytes, place: int) -> UInt8[np.ndarray, "size size 3"]:
        if self.key is None:
            return centre_crop(photo, self.size)
        # The order of an epoch is drawn from the same key: each photo has a counter far from it.
        counter = np.array([0, 0, 1 + place, 0], np.uint64)
        bits = np.random.Philox(key=np.array(self.key, np.uint64), counter=counter)
        return random_crop(photo, self.size, np.random.Generator(bits))

    def _error(self, place: int, reason: str) -> DataError:
        return DataError(f"split {self.photos.split!r}, example {place}: {reason}")


def _ahead(
    cut: Callable[[Int[np.ndarray, "..."]], Examples],
    table: Sequence[Int[np.ndarray, "..."]],
    workers: int,
) -> Generator[Examples, None, None]:
    """The results of `cut` for each row of a table, in order, made before they are asked for."""
    import grain  # slow to import, and sets in memory do without

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # else grain 0.2.18 raises where nobody has an absl app
    workers = min(workers, len(table))
    here = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BATCHES_AHEAD)
    in_workers = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # they are ahead already
    rows = grain.MapDataset.source(table).map(cut)
    # Through pipes: shared memory is scarce in containers, and an interrupted run may leave some.
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    ahead = rows.to_iter_dataset(in_workers if workers else here)
    results = grain.experimental.WithOptionsIterDataset(ahead, options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
        worker_init_fn=_end_with_the_parent,
    )
    iterator = iter(results)
    with contextlib.closing(iterator):
        # Processes inherit what is blocked. A terminal's Ctrl-C and a cluster's SIGTERM go to all
        # of them, but only this one may act on it: it takes a last batch, and saves.
        resource_tracker.ensure_running()  # Python unblocks them when it starts this helper
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_PARENT_ALONE)
        try:
            first = next(iterator, None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if first is not None:
            yield first
            yield from iterator


def _end_with_the_parent(worker: int, workers: int) -> None:
    """Sees to it that a worker does not outlive a parent that was killed."""
    del worker, workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
