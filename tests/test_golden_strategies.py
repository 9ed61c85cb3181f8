"""Rates per layer against those that the authors give with HYDRA and Robust-ADMM.

The source is named in golden/strategies.json. Their rates are whole numbers of weights over the
size of the layer. LAMP's come from their pre-trained weights, which are not here: these lists only
show that the layers and the budget are the same.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from harp_jax import models
from harp_jax.pruning.layers import kernel_paths, layer_name, leaves_by_path
from harp_jax.pruning.strategies import erk

PUBLISHED = json.loads((pathlib.Path(__file__).parent / "golden" / "strategies.json").read_text())
NETWORKS = {"vgg16_bn": (32, 10), "resnet18": (32, 10), "resnet50": (224, 1000)}
# In these lists the shortcut of a block comes before its convolutions.
SHORTCUTS_FIRST = [("resnet18", "0.1")]
CASES = [(name, budget) for name in NETWORKS for budget in PUBLISHED[name]["erk"]]


def kernels_of(name, budget):
    """Shapes of the kernels by path, in the order of the lists."""
    side, classes = NETWORKS[name]
    images, key = jnp.zeros((1, side, side, 3)), jax.random.key(0)
    params = jax.eval_shape(models.create(name, classes).init, key, images)["params"]
    leaves, paths = leaves_by_path(params), kernel_paths(params)
    if (name, budget) in SHORTCUTS_FIRST:
        blocks = list(dict.fromkeys(path[0] for path in paths))
        paths.sort(key=lambda path: (blocks.index(path[0]), path[1] != "shortcut"))
    return {path: leaves[path] for path in paths}


@pytest.mark.parametrize(("name", "budget"), CASES)
def test_erk_gives_the_published_rates(name, budget):
    kernels = kernels_of(name, budget)
    found = erk(kernels, float(budget))
    published = PUBLISHED[name]["erk"][budget]
    assert len(published) == len(found)
    for (path, rate), theirs in zip(found.items(), published, strict=True):
        whole = 1 / kernels[path].size  # theirs are of whole weights
        assert rate == pytest.approx(theirs, rel=1e-4, abs=whole), layer_name(path)


@pytest.mark.parametrize("strategy", ["erk", "lamp"])
@pytest.mark.parametrize(("name", "budget"), CASES)
def test_the_published_rates_spend_the_budget_of_our_layers(name, budget, strategy):
    sizes = [kernel.size for kernel in kernels_of(name, budget).values()]
    rates = PUBLISHED[name][strategy][budget]
    spent = sum(rate * size for rate, size in zip(rates, sizes, strict=True)) / sum(sizes)
    assert spent == pytest.approx(float(budget), rel=5e-3)
