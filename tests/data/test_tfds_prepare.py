"""TFDS' own builders, run offline on small archives in the formats that the makers publish."""

import gzip
import io
import struct
import sys
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.svhn_cropped import svhn_cropped_dataset_builder as svhn
from tensorflow_datasets.image_classification import cifar, mnist

from harp_jax.data import DataError, load, to_unit

TRAIN, TEST = 20, 10


def examples(shape, *, classes=10):
    """{split: (images, labels)} of random bytes."""
    rng = np.random.default_rng(0)
    return {
        split: (
            rng.integers(0, 256, (count, *shape), np.uint8),
            (np.arange(count) % classes).astype(np.uint8),
        )
        for split, count in (("train", TRAIN), ("test", TEST))
    }


def rows(images, labels):
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def assert_prepared(name, data_dir, published):
    """Prepares and loads, then loads again from what was written."""
    data_dir.mkdir()
    datasets = [load(name, data_dir=str(data_dir), seed=0, validation_examples=4) for _ in range(2)]
    for dataset in datasets:
        train, validation, test = dataset.train, dataset.validation, dataset.test
        assert [len(train), len(validation), len(test)] == [TRAIN - 4, 4, TEST]
        assert dataset.image_shape == published["train"][0].shape[1:]
        loaded = rows(
            np.concatenate([train.images, validation.images]),
            np.concatenate([train.labels, validation.labels]),
        )
        assert loaded == rows(*published["train"])
        assert rows(test.images, test.labels) == rows(*published["test"])
    assert list(data_dir.glob(f"{name}/*/*.array_record*"))
    np.testing.assert_array_equal(datasets[0].train.images, datasets[1].train.images)
    return datasets[0]


def cifar_archive(path, files, prefix):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{prefix}{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def cifar_records(images, *labels):
    """Label bytes, then the three colour planes, for each image."""
    return b"".join(
        bytes(record) + image.transpose(2, 0, 1).tobytes()
        for image, *record in zip(images, *labels, strict=True)
    )


def point_to(monkeypatch, builder, path):
    info = builder._cifar_info.fget
    monkeypatch.setattr(
        builder, "_cifar_info", property(lambda self: info(self)._replace(url=str(path)))
    )


def test_cifar10(tmp_path, monkeypatch):
    published = examples((32, 32, 3))
    images, labels = published["train"]
    files = {f"data_batch_{i + 1}.bin": cifar_records(images[i::5], labels[i::5]) for i in range(5)}
    files["test_batch.bin"] = cifar_records(*published["test"])
    files["batches.meta.txt"] = "\n".join(f"class{i}" for i in range(10)).encode()
    archive = tmp_path / "cifar-10-binary.tar.gz"
    cifar_archive(archive, files, "cifar-10-batches-bin/")
    point_to(monkeypatch, cifar.Cifar10, archive)
    dataset = assert_prepared("cifar10", tmp_path / "data", published)
    assert dataset.num_classes == 10
    # TensorFlow was imported after JAX, and JAX still works.
    assert "tensorflow" in sys.modules
    images = dataset.test.images
    np.testing.assert_array_equal(
        to_unit(jnp.asarray(images)), images.astype(np.float32) / np.float32(255)
    )


def test_cifar100_uses_the_fine_labels(tmp_path, monkeypatch):
    published = examples((32, 32, 3), classes=100)
    files = {
        f"{split}.bin": cifar_records(images, labels // 5, labels)
        for split, (images, labels) in published.items()
    }
    files["coarse_label_names.txt"] = "\n".join(f"coarse{i}" for i in range(20)).encode()
    files["fine_label_names.txt"] = "\n".join(f"fine{i}" for i in range(100)).encode()
    archive = tmp_path / "cifar-100-binary.tar.gz"
    cifar_archive(archive, files, "cifar-100-binary/")
    point_to(monkeypatch, cifar.Cifar100, archive)
    dataset = assert_prepared("cifar100", tmp_path / "data", published)
    assert dataset.num_classes == 100


def test_svhn_cropped(tmp_path, monkeypatch):
    published = examples((32, 32, 3))
    for split, (images, labels) in (*published.items(), ("extra", published["test"])):
        # Images last, and the digit 0 is published as 10.
        digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(
            tmp_path / f"{split}_32x32.mat", {"X": np.moveaxis(images, 0, -1), "y": digits}
        )
    monkeypatch.setattr(svhn, "URL", f"{tmp_path}/")
    dataset = assert_prepared("svhn_cropped", tmp_path / "data", published)
    assert dataset.num_classes == 10


def idx_gz(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.tobytes())


def write_idx(folder, published):
    for split, stem in (("train", "train"), ("test", "t10k")):
        images, labels = published[split]
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(idx_gz(images[..., 0]))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(idx_gz(labels))


def test_fashion_mnist_and_the_same_files_read_directly(tmp_path, monkeypatch):
    published = examples((28, 28, 1))
    write_idx(tmp_path, published)
    monkeypatch.setattr(mnist.FashionMNIST, "URL", f"{tmp_path}/")
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", TRAIN)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", TEST)
    prepared = assert_prepared("fashion_mnist", tmp_path / "data", published)
    direct = load(f"idx:{tmp_path}", seed=0, validation_examples=0)
    assert prepared.num_classes == direct.num_classes == 10
    assert rows(prepared.test.images, prepared.test.labels) == rows(
        direct.test.images, direct.test.labels
    )


def test_a_failed_preparation_says_why_and_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "harp_jax")
    point_to(monkeypatch, cifar.Cifar10, tmp_path / "nowhere.tar.gz")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError) as caught:
        load("cifar10", data_dir=str(tmp_path / "data"), seed=0, validation_examples=0)
    text = str(caught.value)
    assert text.startswith("data.name='cifar10': could not be prepared in")
    assert "nowhere.tar.gz" in text
    assert "\n" not in text
    # What may take so long was said before it began.
    (said,) = (record.getMessage() for record in caplog.records if record.name.startswith("harp"))
    assert said.startswith(f"preparing cifar10 in {tmp_path}/data/cifar10/")
    assert not list(tmp_path.glob("data/cifar10/3*"))


def test_a_set_prepared_as_tfrecord_is_refused(tmp_path, monkeypatch):
    published = examples((28, 28, 1))
    write_idx(tmp_path, published)
    monkeypatch.setattr(mnist.MNIST, "URL", f"{tmp_path}/")
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", TRAIN)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", TEST)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = tfds.builder("mnist", data_dir=str(tmp_path / "data"))
    builder.download_and_prepare(download_config=config, file_format="tfrecord")
    with pytest.raises(DataError, match=r"data\.name='mnist': prepared in .* as tfrecord"):
        load("mnist", data_dir=str(tmp_path / "data"), seed=0, validation_examples=0)


def test_a_set_without_a_test_split_is_refused(tmp_path):
    class OnlyTrain(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(4, 4, 1)),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(4):
                yield i, {"image": np.full((4, 4, 1), i, np.uint8), "label": i % 2}

    with pytest.raises(DataError, match=r"'only_train': has no split 'test', only \['train'\]"):
        load("only_train", data_dir=str(tmp_path), seed=0, validation_examples=0)
