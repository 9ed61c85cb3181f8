"""Files with the authors' keys give the logits of the authors' code, others those of PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
import torch_layout
from golden_networks import NETWORKS, scaled, signed, tensors, uniform
from test_golden_models import ARRAYS, MINIMUM, logits

from harp_jax import interop
from harp_jax.interop.layouts import layout
from harp_jax.pruning.layers import bake, leaves_by_path, masked_kernel

WRITERS = {"vgg16_bn": torch_files.zipped, "resnet18": torch_files.older}


def keys(name):
    """The authors' names of layers, by ours: conv1 -> features.0."""
    arrays = layout(name, (32, 32, 3), 10).arrays
    return {path.split("/", 1)[1].rpartition("/")[0]: key.rpartition(".")[0]
            for key, (path, _) in arrays.items()}  # fmt: skip


def checkpoint(name, path, arrays):
    """Writes arrays by our names of layers as the authors' save_checkpoint does."""
    names = keys(name)
    found = {}
    for key, array in arrays.items():
        layer, leaf = key.rsplit(".", 1)
        found[f"module.{names[layer]}.{leaf}"] = np.asarray(array, np.float32)
    write = WRITERS.get(name, torch_files.zipped)
    content = {"epoch": 100, "arch": name, "state_dict": found, "best_prec1": 0.5, "optimizer": {}}
    path.write_bytes(write(content))
    return path


def check_logits(name, variables, kind):
    pixels = uniform(NETWORKS[name].stream + 5000, (4, 3, 32, 32))
    images = jnp.float32(torch_layout.images(pixels))
    expected = ARRAYS[f"{name}/{kind}/logits_eval"]
    actual = logits(name, variables, images, train=False)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_dense_networks(name, tmp_path):
    arrays = tensors(NETWORKS[name])
    scores = [key for key in arrays if key.endswith("popup_scores")]
    arrays |= {key.replace("popup_scores", "k_score"): np.ones(()) for key in scores}
    found = interop.read(checkpoint(name, tmp_path / "net.pth.tar", arrays), name)
    assert found.variables.keys() == {"params", "batch_stats"}
    check_logits(name, found.variables, "dense")


@pytest.mark.parametrize(
    "name",
    [
        "wrn_28_4",
        pytest.param("vgg16_bn", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
    ],
)
def test_pruned_networks(name, tmp_path):
    golden = functools.partial("{}/weight/{}".format, name)
    arrays, layers = tensors(NETWORKS[name]), [each.name for each in NETWORKS[name].layers]
    gains = ARRAYS[golden("gain")].astype(np.float64)
    for layer, gain, logit in zip(layers, gains, ARRAYS[golden("k_score")], strict=True):
        arrays[f"{layer}.weight"] = arrays[f"{layer}.weight"] * gain
        arrays[f"{layer}.k_score"] = logit
    path = checkpoint(name, tmp_path / "net.pth.tar", arrays)
    found = interop.read(path, name, target=10 * MINIMUM, alpha=0.1)
    plain = bake(found.variables, jax.jit(masked_kernel))
    kernels = leaves_by_path(plain["params"])
    kept = [np.count_nonzero(kernels[(*layer.split("/"), "kernel")]) for layer in layers]
    np.testing.assert_array_equal(kept, ARRAYS[golden("n_kept")])
    check_logits(name, plain, "weight")
    rates = leaves_by_path(found.variables["rates"])
    logits_of_rates = [rates[(*layer.split("/"), "kernel")] for layer in layers]
    np.testing.assert_array_equal(logits_of_rates, ARRAYS[golden("k_score")])


# Networks whose logits PyTorch computed: (sides of the images, stream of the first tensor).
OTHERS = {
    "preact_resnet18": (32, 500_000),
    "preact_resnet18_v2": (32, 510_000),
    "resnet50": (64, 520_000),
    "wrn_28_10": (32, 530_000),
    "wrn_34_10": (32, 540_000),
}
LARGE = ("resnet50", "wrn_28_10", "wrn_34_10")


def by_formula(name):
    """A network's arrays by PyTorch's keys, and images NHWC: each array from its own stream."""
    side, stream = OTHERS[name]
    found = {}
    for key, (path, shape) in sorted(layout(name, (side, side, 3), 10).arrays.items()):
        stream += 1
        if len(shape) > 1:
            found[key] = scaled(stream, shape)
        elif path.endswith("/var"):
            found[key] = 0.5 + uniform(stream, shape)
        else:
            found[key] = path.endswith("/scale") + 0.1 * signed(stream, shape)
    pixels = uniform(stream + 1, (3, 3, side, side))
    found = {key: array.astype(np.float32) for key, array in found.items()}
    return found, torch_layout.images(pixels).astype(np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in OTHERS]
)
def test_networks_of_others(name, tmp_path):
    arrays, images = by_formula(name)
    (tmp_path / "net.pth").write_bytes(torch_files.zipped({"net": arrays}))
    found = interop.read(tmp_path / "net.pth", name, image_shape=images.shape[1:])
    actual = logits(name, found.variables, jnp.asarray(images), train=False)
    expected = torch_layout.golden("torch_networks")[name]
    assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
