"""A small ImageNet of real photos, prepared as TFDS prepares the large one: ArrayRecord of JPEGs.

`python tests/fake_imagenet.py DIR --images 64` writes one that `--config.data.directory=DIR
--config.data.name=imagenet2012 --config.data.image_size=64` streams.
"""

import argparse
import io
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_sample_images

CLASSES = 10  # that occur: five columns of each of the two photos
SHORTEST, LONGEST = 24, 96  # sides, in pixels
Example = dict[str, bytes | int | str]


def examples(count: int, seed: int, *, labelled: bool = True) -> Iterator[tuple[int, Example]]:
    """JPEGs of parts of two photos; the class is the photo and the column that a part is from."""
    rng = np.random.default_rng(seed)
    photos = load_sample_images().images
    for i in range(count):
        label = i % CLASSES
        photo, column = photos[label // 5], label % 5
        height, width = rng.integers(SHORTEST, LONGEST, 2, endpoint=True)
        top = rng.integers(photo.shape[0] - height)
        left = column * (photo.shape[1] - LONGEST) // 4
        encoded = io.BytesIO()
        Image.fromarray(photo[top : top + height, left : left + width]).save(encoded, "JPEG")
        kept = label if labelled else -1
        yield i, {"image": encoded.getvalue(), "label": kept, "file_name": f"{label}_{i}.JPEG"}


def write(
    data_dir: pathlib.Path, *, train: int, validation: int, test: int = 0, name="imagenet2012"
) -> None:
    """Prepares a set with the stock builder, from these photos instead of the makers' archives.

    Args:
        data_dir: TFDS' folder.
        train: How many examples.
        validation: How many.
        test: How many, without labels; 0: no such split.
        name: 'imagenet2012', or another set with the same features.
    """
    builder = tfds.builder(name, data_dir=data_dir)
    keys = set(builder.info.features)
    splits = {"train": (train, True), "validation": (validation, True), "test": (test, False)}
    builder._split_generators = lambda _: {
        split: (
            (i, {key: example[key] for key in keys})
            for i, example in examples(count, seed, labelled=labelled)
        )
        for seed, (split, (count, labelled)) in enumerate(splits.items())
        if count
    }
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(file_format="array_record", download_config=config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=64, help="to train on; a quarter to test on")
    arguments = parser.parse_args()
    write(arguments.data_dir, train=arguments.images, validation=max(1, arguments.images // 4))
