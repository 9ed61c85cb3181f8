"""The format 'torch': names and layout of PyTorch, in a file that PyTorch reads."""

import io
import pickletools
import zipfile

import networks
import numpy as np
import pytest
import small_networks
import torch_layout
from flax.traverse_util import flatten_dict

from harp_jax import models
from harp_jax.export import FileError, torch_file, torch_names
from harp_jax.export.trained import Trained, flat

BLOCK = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")


def named(name):
    """The shapes of a network's arrays by PyTorch's names."""
    import jax
    import jax.numpy as jnp

    network, shape = models.create(name, 10), networks.row(name).shape
    made = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), made)
    found = torch_names.state_dict(Trained(network, variables, {}))
    return {key: array.shape for key, array in found.items()}


def test_vgg16_has_the_authors_names():
    found = named("vgg16_bn")
    convolutions = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"features.{place}.weight" for place in convolutions}
    expected |= {f"features.{place + 1}.{each}" for place in convolutions for each in norm}
    expected |= {f"classifier.{n}.{each}" for n in (0, 2, 4) for each in ("weight", "bias")}
    assert found.keys() == expected
    assert found["features.3.weight"] == (64, 64, 3, 3)
    assert found["classifier.0.weight"] == (256, 2048)
    assert found["features.1.num_batches_tracked"] == ()


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("resnet18", 122, {"bn1.bias", "linear.weight", "layer2.0.shortcut.0.weight",
                           "layer2.0.shortcut.1.running_var"}
         | {f"layer{s}.{b}.{n}" for s in (1, 2, 3, 4) for b in (0, 1) for n in BLOCK}),
        ("wrn_28_4", 155, {"conv1.weight", "bn1.weight", "fc.bias",
                           "block1.layer.0.convShortcut.weight"}
         | {f"block{s}.layer.{b}.{n}" for s in (1, 2, 3) for b in range(4) for n in BLOCK}),
        ("resnet50", 320, {"fc.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.running_mean",
                           "layer3.5.conv3.weight", "layer2.0.downsample.1.num_batches_tracked"}),
    ],
)  # fmt: skip
def test_residual_networks_have_the_authors_names(name, count, some):
    found = named(name)
    assert len(found) == count
    assert some <= found.keys()


def test_the_importer_of_the_golden_numbers_reads_it():
    trained = small_networks.small("convnet")
    arrays, _ = torch_file.decode(torch_file.encode(trained))
    arrays = {name: a for name, a in arrays.items() if not name.endswith("num_batches_tracked")}
    layers = {**torch_layout.CONVNET_LAYERS}
    found = torch_layout.variables(arrays, layers, {"fc1": (2, 2, 6)})
    expected = flatten_dict(trained.variables)
    assert flatten_dict(found).keys() == expected.keys()
    for path, array in flatten_dict(found).items():
        np.testing.assert_array_equal(array, expected[path])


@pytest.mark.parametrize("kind", small_networks.KINDS)
def test_arrays_come_back(kind):
    trained = small_networks.small(kind)
    arrays, metadata = torch_file.decode(torch_file.encode(trained))
    found, expected = flat(torch_names.variables(trained, arrays)), flat(trained.variables)
    assert found.keys() == expected.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, expected[path])
    assert trained.metadata.items() <= metadata.items()


def test_the_pickle_names_only_what_weights_only_allows():
    content = torch_file.encode(small_networks.small("residual"))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickled = archive.read("archive/data.pkl")
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        assert archive.testzip() is None
    found = {argument for code, argument, _ in pickletools.genops(pickled) if code.name == "GLOBAL"}
    assert found == {
        "collections OrderedDict",
        "torch FloatStorage",
        "torch LongStorage",
        "torch._utils _rebuild_tensor_v2",
    }


def test_pytorch_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    trained = small_networks.small("residual")
    (tmp_path / "net.pth").write_bytes(torch_file.encode(trained))
    found = torch.load(tmp_path / "net.pth", weights_only=True)
    assert found["arch"] == "small_networks:residual"
    for name, array in torch_names.state_dict(trained).items():
        np.testing.assert_array_equal(found["state_dict"][name].numpy(), array)


def test_damaged_files_are_refused():
    content = torch_file.encode(small_networks.small("convnet"))
    arrays = content.index(b"\x00\x00\x80?") if b"\x00\x00\x80?" in content else len(content) // 2
    for damaged in (b"", content[:1000], content[:arrays] + b"\x01" + content[arrays + 1 :]):
        with pytest.raises(FileError, match="damaged"):
            torch_file.decode(damaged)
    other = content.replace(b"ctorch\nFloatStorage\n", b"cbuiltins\neval\n     ")
    with pytest.raises(FileError):
        torch_file.decode(other)


def test_other_networks_are_refused():
    network = small_networks.Varied(num_classes=3)
    trained = small_networks.pruned(network, "mine:Net", (9, 7, 3), num_classes=3)
    with pytest.raises(FileError, match="Varied has no twin in PyTorch; allowed are ConvNet, VGG"):
        torch_file.encode(trained)
