"""Image sets, their splits, batches for all devices, and augmentation on the device.

One file for each kind of source: installed packages, TensorFlow Datasets, and files of a user's own
(`datasets.SOURCES`); in memory or streamed from disk. Images stay uint8 until a training step
scales them. `attacks`, `methods`, `models` and the rooms above them may import this one.
"""

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
