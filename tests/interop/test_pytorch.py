"""Checkpoints that PyTorch writes: logits and masks are those of the networks in PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import test_golden_import  # noqa: E402
import torch_layout  # noqa: E402
import torch_nets  # noqa: E402
from torch_nets import Masks, ResNet18, ResNet50, Small, Vgg, Wide  # noqa: E402

from harp_jax import export, interop, models  # noqa: E402
from harp_jax.export import torch_names  # noqa: E402
from harp_jax.interop.layouts import layout  # noqa: E402
from harp_jax.interop.pruned import Rule  # noqa: E402
from harp_jax.pruning.layers import bake, leaves_by_path, masked_kernel  # noqa: E402

slow = pytest.mark.slow
SIDE = {"tiny": (8, 8, 1), "resnet50": (64, 64, 3)}


def in_state_dict(arrays):
    return {"epoch": 1, "arch": "x", "state_dict": arrays, "best_prec1": torch.tensor(0.5)}


def at_top(arrays):
    return arrays


def prefixed(prefix, level):
    return lambda arrays: {level: {f"{prefix}{key}": each for key, each in arrays.items()}}


DENSE = [
    ("HARP, HYDRA, AdversarialPruningBenchmark", "vgg16_bn", Vgg, {}, in_state_dict),
    ("the same with two GPUs", "resnet18", ResNet18, {}, prefixed("module.", "net")),
    ("buffers", "resnet18", ResNet18, {"normalized": True, "classes": 100}, at_top),
    ("Carmon2019", "wrn_28_4", Wide, {"sub_block": True}, prefixed("module.", "state_dict")),
    ("Andriushchenko2020", "preact_resnet18", ResNet18, {"kind": "plain"}, lambda a: {"last": a}),
    (
        "Rice2020",
        "preact_resnet18_v2",
        ResNet18,
        {"kind": "activated", "normalized": True},
        prefixed("module.", "model"),
    ),
    ("tiny", "tiny", Small, {"classes": 7}, at_top),
    ("torchvision", "resnet50", ResNet50, {}, at_top),
    ("Carmon2019", "wrn_28_10", Wide, {"widen": 10, "sub_block": True}, in_state_dict),
    ("Zhang2019", "wrn_34_10", Wide, {"depth": 34, "widen": 10}, prefixed("model.", "state_dict")),
]
LARGE = ("resnet50", "wrn_28_10", "wrn_34_10")


def check_logits(network, found, model, tolerance=1e-5):
    images = np.random.default_rng(0).random((4, *SIDE.get(model, (32, 32, 3))), np.float32)
    expected = torch_nets.logits(network, images)
    made = models.create(
        model, found.metadata["num_classes"], normalization=found.metadata["normalization"]
    )
    plain = bake(found.variables, jax.jit(masked_kernel))
    actual = np.asarray(jax.jit(made.apply)(plain, jnp.asarray(images)))
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    return plain


@pytest.mark.parametrize(
    ("model", "build", "settings", "content"),
    [
        pytest.param(*row, marks=slow if row[0] in LARGE else (), id=f"{source}-{row[0]}")
        for source, *row in DENSE
    ],
)
def test_dense_networks(model, build, settings, content, tmp_path):
    network = torch_nets.made(build(**settings))
    torch.save(content(network.state_dict()), tmp_path / "net.pt")
    shape = SIDE.get(model)
    found = interop.read(tmp_path / "net.pt", model, image_shape=shape)
    assert found.metadata["stage"] == "pretrain"
    check_logits(network, found, model)


def check_masks(network, masks, plain, model):
    """All kernels are zero where their mask in PyTorch is, and nowhere else."""
    form = layout(model, SIDE.get(model, (32, 32, 3)), 10)
    kernels = leaves_by_path(plain["params"])
    expected = torch_nets.masks_of(network, masks)
    assert expected.keys() == form.layers().keys()
    for name, (path, shape) in form.layers().items():
        mask = np.broadcast_to(expected[name], shape).astype(np.float32)
        mask = torch_names.turned_back(form.trained, path, mask)
        kernel = kernels[tuple(path.split("/")[1:])]
        np.testing.assert_array_equal(np.asarray(kernel) != 0, mask != 0)


PRUNED = [
    ("tiny", Small, Masks(minimum=0.01), {"target": 0.1}),
    ("tiny", Small, Masks(rate=0.2), {"rate": 0.2}),
    ("wrn_28_4", Wide, Masks(minimum=0.001), {"target": 0.01, "alpha": 0.1}),
    ("vgg16_bn", Vgg, Masks(minimum=0.005), {"target": 0.05}),
    ("resnet18", ResNet18, Masks(rate=0.01), {"rate": 0.01}),
    ("vgg16_bn", Vgg, Masks(minimum=0.05, channels=True), {"target": 0.5}),
]


@pytest.mark.parametrize(
    ("model", "build", "masks", "settings"),
    [pytest.param(*row, marks=() if row[0] == "tiny" else slow) for row in PRUNED],
)
def test_pruned_networks(model, build, masks, settings, tmp_path):
    torch.manual_seed(1)
    network = build(masks)
    if masks.channels:  # or the layer that reads three colours would keep none
        network.features[0].k_score.data.fill_(3.0)
    torch_nets.made(network, masks)
    torch.save(in_state_dict(network.state_dict()), tmp_path / "net.pth.tar")
    found = interop.read(tmp_path / "net.pth.tar", model, **settings)
    assert found.metadata["stage"] == "prune"
    plain = check_logits(network, found, model)
    check_masks(network, masks, plain, model)


@pytest.mark.parametrize(
    "settings",
    [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}],
    ids=["zip", "older", "protocol 4"],
)
def test_every_file_that_pytorch_writes(settings, tmp_path):
    network = torch_nets.made(Small())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    content = {
        "model": network.half().state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": np.float64(0.5),
        "sizes": torch.Size([1, 2]),
    }
    torch.save(content, tmp_path / "net.pt", **settings)
    found = interop.read(tmp_path / "net.pt", "tiny")
    check_logits(network.float(), found, "tiny")
    content["model"] = network.bfloat16().state_dict()
    torch.save(content, tmp_path / "net.pt", **settings)
    check_logits(network.float(), interop.read(tmp_path / "net.pt", "tiny"), "tiny")


BUILD = {
    "preact_resnet18": functools.partial(ResNet18, kind="plain"),
    "preact_resnet18_v2": functools.partial(ResNet18, kind="activated"),
    "resnet50": functools.partial(ResNet50, classes=10),
    "wrn_28_10": functools.partial(Wide, widen=10),
    "wrn_34_10": functools.partial(Wide, depth=34, widen=10),
}


@slow
@pytest.mark.parametrize("name", test_golden_import.OTHERS)
def test_the_golden_numbers_of_networks_are_pytorchs(name):
    arrays, images = test_golden_import.by_formula(name)
    network = BUILD[name]().eval()
    found = network.load_state_dict({key: torch.from_numpy(a) for key, a in arrays.items()}, False)
    assert not found.unexpected_keys
    assert {key.rpartition(".")[2] for key in found.missing_keys} == {"num_batches_tracked"}
    expected, golden = torch_nets.logits(network, images), torch_layout.golden("torch_networks")
    np.testing.assert_allclose(golden[name], expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_our_own_files_come_back(tmp_path):
    network = torch_nets.made(Small())
    torch.save(network.state_dict(), tmp_path / "net.pt")
    interop.import_checkpoint(tmp_path / "net.pt", "tiny", tmp_path / "workdir")
    export.write(tmp_path / "workdir", tmp_path / "back.pt", "torch")
    back = torch.load(tmp_path / "back.pt", weights_only=True)["state_dict"]
    for key, array in network.state_dict().items():
        np.testing.assert_array_equal(back[key].numpy(), array.numpy())


def test_whole_modules_are_refused(tmp_path):
    torch.save(Small(), tmp_path / "net.pt")
    with pytest.raises(export.FileError, match=r"pickle: names 'torch_nets\.Small'; allowed are"):
        interop.read(tmp_path / "net.pt", "tiny")


@pytest.mark.parametrize("minimum", [0.001, 0.01])
def test_counts_of_large_layers_are_pytorchs(minimum):
    """Where rounding of the rate would change the count, ours is that of PyTorch's float32."""
    size, logits = 512 * 512 * 9, np.linspace(-9, 3, 997).astype(np.float32)
    found, expected = [], []
    for logit in logits:
        rate = torch.sigmoid(torch.tensor(logit)) * (1 - minimum) + minimum
        expected.append(int((1 - rate) * size))
        found.append(Rule(minimum).removed(np.asarray(logit), size))
    assert np.mean(np.array(found) != np.array(expected)) < 0.03
    assert np.abs(np.array(found) - np.array(expected)).max() <= 1
