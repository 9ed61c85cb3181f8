"""Compares what a device computes with the golden numbers of tests/golden, as errors.

The tests compare the same numbers with limits, on CPUs in float32. Here the errors are measured, at
the device's own precision and at the highest, so that one sees what TF32 or bfloat16 products do to
logits, gradients and attacks. It reads the arrays and their layouts from the folder of the tests,
which has to be in PYTHONPATH.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import golden_networks  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np
import torch_layout  # pyright: ignore[reportMissingImports]

from harp_jax import models
from harp_jax.attacks import PGD, norms
from harp_jax.losses import LOSSES
from harp_jax.models.convnet import ConvNet
from harp_jax.pruning.layers import bake
from harp_jax.pruning.masks import weight_mask
from harp_jax.training.step import TrainingForward

Errors = Iterator[tuple[str, dict[str, float]]]  # by name and precision

PRECISIONS = ("default", "highest")
EPSILON, STEP_SIZE, STEPS = 8 / 255, 2 / 255, 10
SMALL = ConvNet(num_classes=10, widths=(16, 32), hidden=64)
MINIMUM = 0.01
LOSS_NAMES = {"natural": "nat", "pgd": "pgd", "trades": "trades", "mart": "mart"}


def errors(networks: Sequence[str], losses: Sequence[str]) -> Errors:
    """Yields names of golden numbers with the errors of this device, by precision.

    Errors are relative to the largest golden number of the array. That of PGD is the share of the
    pixels that it leaves at another place; that of masks the number of other weights.

    Args:
        networks: Names of the networks whose logits are compared, of models.npz.
        losses: Keys of `LOSS_NAMES`, whose values and gradients are compared.
    """
    yield from _each(_masks)
    golden = torch_layout.golden("net_losses")
    yield from _each(lambda: _attack(golden))
    for loss in losses:
        yield from _each(lambda loss=loss: _loss(golden, loss, LOSS_NAMES[loss]))
    for network in networks:
        for train in (False, True):
            yield from _each(lambda network=network, train=train: _logits(network, train))


def _each(measure: Callable[[], dict[str, float]]) -> Errors:
    found: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        with jax.default_matmul_precision(precision):
            for name, error in measure().items():
                found.setdefault(name, {})[precision] = float(error)
    yield from found.items()


def relative(found: Any, expected: Any) -> float:
    """Computes the largest difference, relative to the largest expected number."""
    expected = np.asarray(expected, np.float64)
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def _masks() -> dict[str, float]:
    arrays = torch_layout.golden("mask_weight")
    wrong = 0
    for case in (f"m{number}" for number in range(6)):
        of_case = torch_layout.below(arrays, case)
        masks = jax.jit(jax.vmap(weight_mask, (None, 0)))(of_case["scores"], of_case["rates"])
        wrong += int((np.asarray(masks) != of_case["masks"]).sum())
    return {"masks: weights kept differently": wrong}


def _variables(golden: Any) -> dict[str, Any]:
    tree = torch_layout.convnet(torch_layout.below(golden, "init"))
    variables = jax.tree.map(jnp.asarray, tree)
    return {**variables, "minimum_rates": jax.tree.map(lambda _: MINIMUM, variables["rates"])}


def _attack(golden: Any) -> dict[str, float]:
    images = jnp.asarray(torch_layout.images(golden["x"]))
    labels = jnp.asarray(golden["y"], jnp.int32)
    noise = jnp.asarray(torch_layout.images(golden["pgd/noise"]))
    plain = jax.jit(bake)(_variables(golden))
    attack = PGD(EPSILON, STEP_SIZE, STEPS)
    logits_fn, key = models.logits_fn(SMALL, plain), jax.random.key(0)
    with mock.patch.object(norms, "uniform_noise", return_value=noise):
        found = jax.jit(lambda x: attack(logits_fn, x, labels, key))(images)
    expected = torch_layout.images(golden["pgd/x_adv"])
    differ = np.abs(np.asarray(found) - expected) > 1e-6
    return {"small network, PGD-10: share of the pixels that differ": float(differ.mean())}


def _loss(golden: Any, loss: str, name: str) -> dict[str, float]:
    """Returns the errors of a training loss, and of its gradient by what any stage trains."""
    variables = _variables(golden)
    clean, labels = torch_layout.images(golden["x"]), jnp.asarray(golden["y"], jnp.int32)
    images = clean if name == "nat" else torch_layout.images(golden[f"{name}/x_adv"])
    clean, images = jnp.asarray(clean), jnp.asarray(images)
    trainable = {group: variables[group] for group in ("params", "scores", "rates")}

    def value(trainable: Any) -> Any:
        params = bake({**trainable, "minimum_rates": variables["minimum_rates"]})["params"]
        forward = TrainingForward(SMALL, params, variables["batch_stats"])
        return LOSSES[loss]()(forward, clean, images, labels)[0]

    found, gradient = jax.jit(jax.value_and_grad(value))(trainable)
    expected = torch_layout.convnet(torch_layout.below(golden, f"{name}/grad"))
    worst = 0.0
    for path, theirs in jax.tree_util.tree_leaves_with_path(expected):
        keys = tuple(key.key for key in path)
        ours: Any = gradient
        for key in keys:
            ours = ours[key]
        worst = max(worst, relative(torch_layout.stored_outputs(keys, np.asarray(ours)), theirs))
    return {
        f"small network, loss {loss}": relative(found, golden[f"{name}/loss"]),
        f"small network, gradient of {loss}": worst,
    }


def _logits(name: str, train: bool) -> dict[str, float]:
    network = golden_networks.NETWORKS[name]
    arrays = golden_networks.tensors(network)
    dense = {key: array for key, array in arrays.items() if not key.endswith("popup_scores")}
    layers = {key.rsplit(".", 1)[0]: key.rsplit(".", 1)[0] for key in dense}
    tree = torch_layout.variables(dense, layers, network.flattened)
    variables = jax.tree.map(jnp.float32, tree)
    pixels = golden_networks.uniform(network.stream + 5000, (4, 3, 32, 32))
    images = jnp.float32(torch_layout.images(pixels))
    model = models.create(name, 10)

    @jax.jit
    def logits(variables: Any) -> Any:
        return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]

    mode = "train" if train else "eval"
    expected = torch_layout.golden("models")[f"{name}/dense/logits_{mode}"]
    return {f"{name}, logits, {mode}": relative(logits(variables), expected)}
