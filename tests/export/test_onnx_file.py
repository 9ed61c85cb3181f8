"""The format 'onnx': its graph, run by onnxruntime, has the network's logits."""

import json

import jax
import networks
import numpy as np
import onnx
import pytest
import small_networks

from harp_jax import models
from harp_jax.export import FileError, onnx_file


def check(trained, tolerance=2e-6):
    """Encodes a network, compares logits for two batch sizes and returns ONNX' model."""
    content = onnx_file.encode(trained)
    images, found = small_networks.images(trained), onnx_file.function(content)
    expected = np.asarray(trained.in_float32().logits_fn()(images))
    for count in (5, 1):
        np.testing.assert_allclose(
            found(images[:count]), expected[:count], 0, tolerance * abs(expected).max()
        )
    return onnx.load_from_string(content)


@pytest.mark.parametrize("kind", small_networks.KINDS)
def test_networks_of_every_kind(kind):
    model = check(small_networks.small(kind))
    operations = [node.op_type for node in model.graph.node]
    # Images to channels first, and back where features are flattened.
    assert operations.count("Transpose") == (2 if kind in ("convnet", "vgg") else 1)
    assert operations.count("Conv") == len(
        [
            layer
            for layer in jax.tree.leaves(small_networks.small(kind).variables)
            if layer.ndim == 4
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.DISTINCT)
def test_every_network_of_the_package(name):
    shape = {"cnn": (28, 28, 1), "tiny": (8, 8, 1), "resnet50": (64, 48, 3)}.get(name, (32, 32, 3))
    check(small_networks.pruned(models.create(name, 10), name, shape), 1e-5)


def test_a_network_of_ones_own():
    network = small_networks.Varied(num_classes=3)
    model = check(small_networks.pruned(network, "mine:Net", (9, 7, 3), num_classes=3))
    assert {"AveragePool", "MaxPool", "Concat", "Pad", "Where"} <= {
        node.op_type for node in model.graph.node
    }


def test_metadata_and_the_forms_of_images_and_logits():
    normalization = [[0.3], [0.4]]
    network = models.create("tiny", 10, normalization=normalization, dtype="bfloat16")
    settings = {"normalization": normalization, "compute_dtype": "bfloat16", "source": "a run"}
    model = check(small_networks.pruned(network, "tiny", **settings))
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert found["input"] == "images: float32 NHWC in [0, 1]"
    assert found["compute_dtype"] == "float32"
    assert (found["model"], found["source"]) == ("tiny", "a run")
    (images,), (logits,) = model.graph.input, model.graph.output
    sizes = [
        [size.dim_param or size.dim_value for size in each.type.tensor_type.shape.dim]
        for each in (images, logits)
    ]
    assert sizes == [["batch", 8, 8, 1], ["batch", 10]]
    assert (images.name, logits.name) == ("images", "logits")


def test_the_same_network_gives_the_same_bytes():
    trained = small_networks.small("convnet")
    assert onnx_file.encode(trained) == onnx_file.encode(trained)


def test_an_operation_without_a_translation_is_named():
    network = small_networks.Sorting(num_classes=3)
    trained = small_networks.pruned(network, "mine:Net", num_classes=3)
    with pytest.raises(FileError, match="no translation of JAX's operation 'sort'; allowed are a"):
        onnx_file.encode(trained)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(onnx_file.__builtins__, "__import__", refusing("onnx"))
    with pytest.raises(FileError, match=r"needs the package onnx; .* pip install harp_jax\[onnx\]"):
        onnx_file.encode(small_networks.small("convnet"))


def refusing(package):
    """Python's import, without a package."""
    import builtins

    real = builtins.__import__

    def load(name, *others):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *others)

    return load
