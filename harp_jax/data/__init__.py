"""Image sets, their splits, batches cut over devices, and augmentation on the device."""

from harp_jax.data.augment import augment, to_unit
from harp_jax.data.datasets import load
from harp_jax.data.pipeline import Batch, batches_per_epoch, eval_batches, train_batches
from harp_jax.data.splits import DataError, Dataset, Split

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "Split",
    "augment",
    "batches_per_epoch",
    "eval_batches",
    "load",
    "to_unit",
    "train_batches",
]
