"""Splits that stay on disk: photos that Grain's workers decode ahead of their use."""

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

import numpy as np
from absl import flags
from jaxtyping import Int, Int32, UInt8
from tqdm import tqdm

from harp_jax.data.crops import centre_crop, random_crop
from harp_jax.data.images import UNREADABLE, why
from harp_jax.data.photos import Photos
from harp_jax.data.splits import DataError, Examples, Split

_DECODED_TOGETHER = 64
_BATCHES_AHEAD = 2  # batches that a thread of this process decodes ahead
_TO_THE_PARENT_ALONE = (signal.SIGINT, signal.SIGTERM)


class StreamedSplit(Split):
    """A split of photos that stay on disk and are cropped to squares when they are read.

    Training reads batches from `stream`, which keeps only a few in memory. Evaluation reads
    `images` and `labels`: the centre crop of every photo, decoded at first use and then kept in
    memory, in every process of a run. This takes 3 * image_size**2 bytes a photo, so 7.5 GB for
    ImageNet's 50,000 photos at 224 pixels.
    """

    def __init__(
        self,
        photos: Photos,
        *,
        image_size: int,
        workers: int,
        places: Int[np.ndarray, " examples"] | None = None,
    ):
        """Opens the split without reading any photo.

        Args:
            photos: Photos of a published split.
            image_size: Side of the squares, in pixels.
            workers: Number of processes that decode; 0 decodes in a thread of this process.
            places: Indices of the photos in this split; None means all, in stored order.
        """
        # Not a dataclass like its parent: `images` and `labels` are computed at first use.
        self._photos, self._image_size, self._workers = photos, image_size, workers
        self._places = np.arange(len(photos), dtype=np.int32) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"StreamedSplit({len(self)} photos of {self._photos.split!r}, {self.image_shape})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image; photos are converted to 3 channels."""
        return self._image_size, self._image_size, 3

    def digest(self) -> str:
        """Returns the SHA-256 of version, split, indices and image size; reads no photo."""
        identity = f"{self._photos.version} {self._photos.split} {len(self._photos)}"
        found = hashlib.sha256(f"{identity} {self._image_size}".encode())
        found.update(np.ascontiguousarray(self._places, np.int64).data)
        return found.hexdigest()

    def take(self, places: Int[np.ndarray, " chosen"] | slice) -> "StreamedSplit":
        """Returns the examples at the indices `places`, in that order."""
        return StreamedSplit(
            self._photos,
            image_size=self._image_size,
            workers=self._workers,
            places=self._places[places],
        )

    @property
    def images(self) -> UInt8[np.ndarray, "examples height width channels"]:  # pyright: ignore
        """Centre crops of all photos, uint8 [N, image_size, image_size, 3]."""
        return self._centre_crops[0]

    @property
    def labels(self) -> Int32[np.ndarray, " examples"]:  # pyright: ignore
        """Class labels, int32 [N], in [0, num_classes)."""
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
        """Yields random crops for training, one step at a time, decoded ahead of their use.

        A crop depends only on (seed, epoch, photo): not on the number of workers, processes or
        devices, nor on the step at which an epoch is resumed. The order of an epoch is known
        beforehand, so the step is the only state, and skipping steps costs nothing.

        Args:
            table: Indices into this split, one row per step.
            seed: Seed of the run, in [0, 2**64).
            epoch: Number of the epoch, counted from 0.

        Returns:
            Images, uint8 [devices, per_device, image_size, image_size, 3], and labels of each step.
            The workers end with the generator or when it is closed.

        Raises:
            DataError: If a photo cannot be decoded or has no label; raised at the photo's step.
        """
        cut = _Cut(self._photos, self._image_size, key=(seed, epoch))
        return _ahead(cut, list(self._places[table]), self._workers)


@dataclass(frozen=True)
class _Cut:
    """Reads photos by their indices and crops them; Grain sends it to its workers.

    Attributes:
        photos: Photos of a published split.
        size: Side of the squares, in pixels.
        key: Seed and epoch of random crops; None for centre crops.
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
            except UNREADABLE as error:
                raise self._error(place, f"cannot be decoded ({why(error)})") from error
        return images.reshape(*places.shape, *images.shape[1:]), labels.reshape(places.shape)

    def _cut(self, photo: bytes, place: int) -> UInt8[np.ndarray, "size size 3"]:
        if self.key is None:
            return centre_crop(photo, self.size)
        # The order of an epoch uses the same key, with counters far below those of the photos.
        counter = np.array([0, 0, 1 + place, 0], np.uint64)
        bits = np.random.Philox(key=np.array(self.key, np.uint64), counter=counter)
        return random_crop(photo, self.size, np.random.Generator(bits))

    def _error(self, place: int, reason: str) -> DataError:
        return DataError(f"{self.photos.name(place)}: {reason}")


def _ahead(
    cut: Callable[[Int[np.ndarray, "..."]], Examples],
    table: Sequence[Int[np.ndarray, "..."]],
    workers: int,
) -> Generator[Examples, None, None]:
    """Yields the results of `cut` for the rows of a table, in order, computed in advance."""
    import grain  # slow to import, and not needed for sets in memory

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # without an absl app Grain 0.2.18 would raise
    workers = min(workers, len(table))
    here = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_BATCHES_AHEAD)
    in_workers = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)  # workers prefetch
    rows = grain.MapDataset.source(table).map(cut)
    # Use pipes: containers have little shared memory, and an interrupted run may not free it.
    options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    ahead = rows.to_iter_dataset(in_workers if workers else here)
    results = grain.experimental.WithOptionsIterDataset(ahead, options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
        worker_init_fn=_end_with_the_parent,
    )
    iterator = iter(results)
    with contextlib.closing(iterator):
        # Workers inherit blocked signals. A terminal's Ctrl-C and a cluster's SIGTERM reach every
        # process, but only this one may act on them: it finishes a batch and saves.
        resource_tracker.ensure_running()  # starting it later would unblock the signals
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_THE_PARENT_ALONE)
        try:
            first = next(iterator, None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if first is not None:
            yield first
            yield from iterator


def _end_with_the_parent(worker: int, workers: int) -> None:
    """Ends a worker as soon as its parent process has died."""
    del worker, workers
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
