"""Batches sharded over devices and processes; sharding does not change a batch's examples.

Every process computes the same order of the examples. A global batch is `batch_size` consecutive
examples of it. Process p of P takes the p-th of P equal parts and splits it, in order, among its
local devices.
"""

import contextlib
from collections.abc import Generator, Iterator

import numpy as np
from jaxtyping import Bool, Int32

from harp_jax.data.splits import DataError, Split, permutation

# 'images' uint8 [devices, per_device, H, W, C]; 'labels' int32, 'index' int32 (the example's index
# in its split) and 'valid' bool (False for padding), each [devices, per_device].
Batch = dict[str, np.ndarray]


def batches_per_epoch(split: Split, batch_size: int) -> int:
    """Counts the full batches of a training epoch; each epoch leaves out another remainder."""
    return len(split) // batch_size


def train_batches(
    split: Split,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    devices: int,
    process_index: int = 0,
    process_count: int = 1,
    start: int = 0,
) -> Generator[Batch, None, None]:
    """Yields one training epoch in an order that depends only on (seed, epoch).

    The only state is therefore the number of batches already used. `start` resumes there without
    reading the skipped batches, even where the split is streamed from disk.

    Args:
        split: Examples to train on.
        seed: Seed of the run, in [0, 2**64).
        epoch: Number of the epoch, counted from 0.
        batch_size: Number of examples in a global batch.
        devices: Number of local devices of each process.
        process_index: Index of this process, in [0, process_count).
        process_count: Number of processes that share a global batch.
        start: Number of batches to skip, to resume within an epoch, in [0, batches per epoch].

    Returns:
        This process's part of each global batch; 'valid' is always True. A caller that stops early
        must close the generator: this ends the worker processes of a streamed split.

    Raises:
        DataError: If an argument is out of range, or if the batch size is not a multiple of the
            number of devices or exceeds the split. Raised by the call, before the first batch.
    """
    local = _local_batch(batch_size, devices, process_index, process_count)
    steps = batches_per_epoch(split, batch_size)
    if steps == 0:
        raise DataError(
            f"batch_size={batch_size}: must be at most the {len(split)} training examples"
        )
    if not 0 <= start <= steps:
        raise DataError(f"start={start}: must be in [0, {steps}], the batches of an epoch")
    order = permutation(len(split), seed=seed, stream=epoch)
    table = order[: steps * batch_size].reshape(steps, process_count, devices, local)
    return _stream(split, table[start:, process_index], seed, epoch)


def eval_batches(
    split: Split,
    *,
    batch_size: int,
    devices: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Yields every example once, in stored order; the last global batch is padded.

    Args:
        split: Examples to evaluate on; an empty split yields no batch.
        batch_size: Number of examples in a global batch.
        devices: Number of local devices of each process.
        process_index: Index of this process, in [0, process_count).
        process_count: Number of processes that share a global batch.

    Returns:
        This process's part of each global batch; all processes get the same number of batches.
        Padding repeats the last example and has 'valid' False.

    Raises:
        DataError: If an argument is out of range, or if the batch size is not a multiple of the
            number of devices. Raised by the call, before the first batch.
    """
    local = _local_batch(batch_size, devices, process_index, process_count)
    steps = -(-len(split) // batch_size)
    places = np.arange(steps * batch_size, dtype=np.int32)
    table = np.minimum(places, len(split) - 1).reshape(steps, process_count, devices, local)
    valid = (places < len(split)).reshape(table.shape)
    return (
        _gather(split, table[step, process_index], valid[step, process_index])
        for step in range(steps)
    )


def _local_batch(batch_size: int, devices: int, process_index: int, process_count: int) -> int:
    """Checks all arguments and returns the number of examples per device."""
    for field, value in (
        ("batch_size", batch_size),
        ("devices", devices),
        ("process_count", process_count),
    ):
        if value < 1:
            raise DataError(f"{field}={value}: must be at least 1")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index={process_index}: must be in [0, {process_count})")
    per_device, remainder = divmod(batch_size, devices * process_count)
    if remainder:
        raise DataError(
            f"batch_size={batch_size}: must be a multiple of {devices * process_count} "
            f"({devices} devices in each of {process_count} processes)"
        )
    return per_device


def _stream(
    split: Split, table: Int32[np.ndarray, "steps devices per_device"], seed: int, epoch: int
) -> Generator[Batch, None, None]:
    valid = np.ones(table.shape[1:], bool)
    with contextlib.closing(split.stream(table, seed=seed, epoch=epoch)) as examples:
        for index, (images, labels) in zip(table, examples, strict=True):
            yield {"images": images, "labels": labels, "index": index, "valid": valid}


def _gather(
    split: Split,
    index: Int32[np.ndarray, "devices per_device"],
    valid: Bool[np.ndarray, "devices per_device"],
) -> Batch:
    return {
        "images": split.images[index],
        "labels": split.labels[index],
        "index": index,
        "valid": valid,
    }
