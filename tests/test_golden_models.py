"""Networks against the authors': logits, kept counts and sizes, from parameters by a formula."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_layout
from golden_networks import NETWORKS, Network, tensors, uniform
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import models
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import bake, layer_name, leaves_by_path, masked_kernel

ARRAYS = torch_layout.golden("models")
MINIMUM = 0.01


class Case(NamedTuple):
    """One of the networks, with the authors' numbers for it."""

    name: str
    network: Network
    tensors: dict[str, np.ndarray]
    golden: dict[str, np.ndarray]

    def variables(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        """Tensors in PyTorch's layout as float32 variables of our network."""
        layers = {name.rsplit(".", 1)[0]: name.rsplit(".", 1)[0] for name in arrays}
        tree = torch_layout.variables(arrays, layers, self.network.flattened)
        return jax.tree.map(jnp.float32, tree)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    network = NETWORKS[request.param]
    golden = torch_layout.below(ARRAYS, request.param)
    return Case(request.param, network, tensors(network), golden)


@functools.partial(jax.jit, static_argnames=("name", "train"))
def logits(name, variables, images, *, train):
    model = models.create(name, 10)
    return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]


def check_logits(case, variables, kind):
    """Allows rounding in proportion to the largest logit."""
    pixels = uniform(case.network.stream + 5000, (4, 3, 32, 32))
    images = jnp.float32(torch_layout.images(pixels))
    # In training the last layers normalise by as few as 16 values, which amplifies rounding.
    for mode, tolerance in (("eval", 5e-6), ("train", 3e-5)):
        expected = case.golden[f"{kind}/logits_{mode}"]
        actual = logits(case.name, variables, images, train=mode == "train")
        assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_dense_logits(case):
    dense = {name: a for name, a in case.tensors.items() if not name.endswith("popup_scores")}
    check_logits(case, case.variables(dense), "dense")


# Masks are the same code in every network.
@pytest.mark.parametrize(
    "case",
    [
        "wrn_28_4",
        pytest.param("vgg16_bn", marks=pytest.mark.slow),
        pytest.param("resnet18", marks=pytest.mark.slow),
    ],
    indirect=True,
)
def test_pruned_logits_and_kept_counts(case):
    arrays = dict(case.tensors)
    names = [layer.name for layer in case.network.layers]
    gains = case.golden["weight/gain"].astype(np.float64)
    for name, gain, logit in zip(names, gains, case.golden["weight/k_score"], strict=True):
        arrays[f"{name}.weight"] = arrays[f"{name}.weight"] * gain
        arrays[f"{name}.k_score"] = logit
    pruned = case.variables(arrays)
    pruned["minimum_rates"] = jax.tree.map(lambda _: jnp.float32(MINIMUM), pruned["rates"])
    plain = bake(pruned, jax.jit(masked_kernel))  # compiled once for every shape
    kernels = leaves_by_path(plain["params"])
    kept = [np.count_nonzero(kernels[(*name.split("/"), "kernel")]) for name in names]
    assert_array_equal(kept, case.golden["weight/n_kept"])
    check_logits(case, plain, "weight")


def test_layers_and_sizes(case):
    model = models.create(case.name, 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == case.network.parameters
    costs = parameter_costs(shapes["params"])
    assert list(costs.values()) == case.golden["dense/n_weights"].tolist()
    assert [layer_name(path) for path in costs] == [layer.name for layer in case.network.layers]
    assert sum(costs.values()) == case.network.weights
