"""Writes image sets in every layout that `harp_jax.data.load` reads from a user's files."""

import io
import json
import pathlib
import pickle
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import scipy.io
from PIL import Image
from pyarrow import parquet


class Set(NamedTuple):
    """Images [N, H, W, C] and labels [N] of both splits."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    def splits(self):
        return {"train": self[:2], "test": self[2:]}


def random_set(*, size=(8, 8), channels=3, classes=10, train=40, test=20, seed=0) -> Set:
    """Random images, brighter from class to class so that a network can tell them apart."""
    rng = np.random.default_rng(seed)

    def split(count):
        labels = np.arange(count) % classes
        noise = rng.integers(0, 56, (count, *size, channels))
        return (noise + (labels * 200 // classes)[:, None, None, None]).astype(np.uint8), labels

    return Set(*split(train), *split(test))


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """Encodes [H, W, 3] or [H, W, 1]."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, kind, **options)
    return stream.getvalue()


def write_npz(folder: pathlib.Path, images: Set) -> str:
    np.savez(folder / "set.npz", **images._asdict())
    return f"npz:{folder / 'set.npz'}"


def write_folder(folder: pathlib.Path, images: Set, test: str = "test") -> str:
    """Writes PNGs whose names sort by class and index, so that their order is that of labels."""
    for split, (pixels, labels) in images.splits().items():
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / (test if split == "test" else split) / f"class{label:03}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i:05}.png").write_bytes(encode(image))
    return f"folder:{folder}"


def table(encoded, labels, *, image="image", label="label", names=None) -> pa.Table:
    """A table as Hugging Face's `datasets` stores images; with names as a ClassLabel."""
    rows = [{"bytes": each, "path": None} for each in encoded]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(rows, kind), label: pa.array(np.asarray(labels))}
    described = {image: {"_type": "Image"}, label: {"_type": "Value", "dtype": "int64"}}
    if names is not None:
        described[label] = {"_type": "ClassLabel", "names": names}
    metadata = {b"huggingface": json.dumps({"info": {"features": described}}).encode()}
    return pa.table(columns).replace_schema_metadata(metadata)


def write_parquet(folder: pathlib.Path, images: Set, files: int = 2, rows: int = 7, **names) -> str:
    """Writes each split in a number of files, of row groups of a number of rows."""
    for split, (pixels, labels) in images.splits().items():
        parts = np.array_split(np.arange(len(labels)), files)
        for i, part in enumerate(parts):
            written = table([encode(pixels[place]) for place in part], labels[part], **names)
            name = f"{split}-{i:05}-of-{files:05}.parquet"
            parquet.write_table(written, folder / name, row_group_size=rows)
    return f"parquet:{folder}/*.parquet"


def planes(images: np.ndarray) -> np.ndarray:
    """The order of pixels in CIFAR's files: all red ones, all green ones, all blue ones."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def batches(images: Set) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of the files of CIFAR-10."""
    parts = np.array_split(np.arange(len(images.y_train)), 5)
    found = {
        f"data_batch_{i}": (planes(images.x_train[part]), images.y_train[part])
        for i, part in enumerate(parts, 1)
    }
    return {**found, "test_batch": (planes(images.x_test), images.y_test)}


def write_cifar(folder: pathlib.Path, images: Set) -> str:
    """Writes the binary version of CIFAR-10."""
    for name, (pixels, labels) in batches(images).items():
        records = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return f"cifar:{folder}"


def write_pickled_cifar(folder: pathlib.Path, images: Set) -> str:
    """Writes the Python version of CIFAR-10."""
    for name, (pixels, labels) in batches(images).items():
        content = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"a batch"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return f"cifar:{folder}"


def write_svhn(folder: pathlib.Path, images: Set) -> str:
    for split, (pixels, labels) in images.splits().items():
        content = {"X": np.moveaxis(pixels, 0, 3), "y": np.where(labels == 0, 10, labels)[:, None]}
        scipy.io.savemat(folder / f"{split}_32x32.mat", content, do_compression=True)
    return f"svhn:{folder}"


def write_idx(folder: pathlib.Path, images: Set) -> str:
    """Writes the first channel."""
    for split, (pixels, labels) in images.splits().items():
        prefix = "t10k" if split == "test" else "train"
        for name, array in (
            (f"{prefix}-images-idx3", pixels[..., 0]),
            (f"{prefix}-labels-idx1", labels),
        ):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return f"idx:{folder}"
