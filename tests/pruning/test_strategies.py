"""Strategies against plain NumPy forms of their definitions, on networks of real depth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from harp_jax import models
from harp_jax.models.resnet import ResNet
from harp_jax.models.vgg import POOL, VGG, VGG16_PLAN
from harp_jax.pruning.budget import whole_counts
from harp_jax.pruning.layers import kernel_paths, leaves_by_path
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.rates import logit_from_count, rate_from_logit
from harp_jax.pruning.strategies import (
    STRATEGIES,
    erk,
    global_magnitude,
    lamp,
    uniform,
)

RATES = (0.1, 0.01)
RESNET18 = ResNet(10, stages=(2, 2, 2, 2), width=16)  # a quarter of the published width, as below
QUARTER_PLAN = [width if width == POOL else width // 4 for width in VGG16_PLAN]
NETWORKS = [
    pytest.param(VGG(10, plan=QUARTER_PLAN, hidden=(64, 64)), id="vgg16_bn/4"),
    pytest.param(RESNET18, id="resnet18/4"),
    pytest.param(models.create("vgg16_bn", 10), id="vgg16_bn", marks=pytest.mark.slow),
]


def network_kernels(model):
    """Kernels of a network's shapes whose layers differ in spread and in tail."""
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    shapes = leaves_by_path(params)
    rng, kernels = np.random.default_rng(0), {}
    for number, path in enumerate(kernel_paths(params)):
        normal = rng.standard_normal(shapes[path].shape, np.float32)
        kernels[path] = np.sign(normal) * np.abs(normal) ** (1 + number / 20) / (1 + number)
    return kernels


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    kernels = network_kernels(request.param)
    return kernels, numpy_lamp_layers(kernels)


def numpy_erk(kernels, rate):
    """Layers are taken out one by one, the largest first, until no rate exceeds 1."""
    raw = {path: sum(w.shape) / math.prod(w.shape) for path, w in kernels.items()}
    dense = set()
    while True:
        budget = rate * sum(w.size for w in kernels.values())
        budget -= sum(kernels[path].size for path in dense)
        scale = budget / sum(raw[p] * kernels[p].size for p in kernels if p not in dense)
        rates = {p: 1.0 if p in dense else scale * raw[p] for p in kernels}
        worst = max(rates, key=rates.__getitem__)
        if rates[worst] <= 1:
            return rates
        dense.add(worst)


def numpy_lamp_layers(kernels):
    """The layer of every weight of the network, by descending LAMP score."""
    scores, layers = [], []
    for number, kernel in enumerate(kernels.values()):
        squares = np.sort(kernel.astype(np.float64).reshape(-1) ** 2)[::-1]
        scores.append(squares / np.cumsum(squares))
        layers.append(np.full(squares.size, number, np.int8))
    return np.concatenate(layers)[np.argsort(np.concatenate(scores))[::-1]]


def numpy_lamp(kernels, layers, rate):
    kept = np.bincount(layers[: round(rate * layers.size)], minlength=len(kernels))
    return {path: count / kernels[path].size for path, count in zip(kernels, kept, strict=True)}


def spent(rates, kernels):
    total = sum(kernel.size for kernel in kernels.values())
    return sum(rates[path] * kernel.size for path, kernel in kernels.items()) / total


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("strategy", [erk, lamp])
def test_rates_are_those_of_the_definition(network, strategy, rate):
    kernels, layers = network
    found = strategy(kernels, rate)
    expected = numpy_erk(kernels, rate) if strategy is erk else numpy_lamp(kernels, layers, rate)
    assert list(found) == list(kernels)
    apart = max(abs(found[path] - expected[path]) for path in kernels)
    off = abs(spent(found, kernels) / rate - 1)
    print(f"{strategy.__name__} {rate}: rates {apart:.1e} apart, budget {off:.1e} off")
    assert apart < 1e-12
    assert off < 1e-4
    assert max(found.values()) > 2 * rate  # it is not the uniform one


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_minimum_rates_are_held_and_paid_by_the_others(strategy):
    kernels = network_kernels(RESNET18)
    minimum = 0.006
    free, bound = strategy(kernels, 0.01, 0.0), strategy(kernels, 0.01, minimum)
    below = [path for path in kernels if free[path] < minimum]
    assert bool(below) == (strategy is not uniform)
    assert_allclose(spent(bound, kernels), 0.01, rtol=1e-6)
    assert all(bound[path] == minimum for path in below)
    assert min(bound.values()) >= minimum
    inside = [path for path in kernels if minimum < bound[path] < 1]
    ratios = [bound[path] / free[path] for path in inside if free[path] < 1]
    assert_allclose(ratios, ratios[0], rtol=1e-6)
    assert ratios[0] <= 1


def test_erk_by_hand():
    kernels = {("a", "kernel"): np.ones((1, 1, 2, 2)), ("b", "kernel"): np.ones((3, 3, 4, 4))}
    # Shares (1+1+2+2)/4 = 1.5 and (3+3+4+4)/144: 6 and 14 weights of each unit of the factor.
    assert_allclose(list(erk(kernels, 10 / 148).values()), [3 / 4, 7 / 144])
    # At the factor 2 the small layer would keep 12 of 4 weights; it is dense.
    assert_allclose(list(erk(kernels, 40 / 148).values()), [1.0, 36 / 144])


def test_lamp_by_hand():
    kernels = {
        # Squares 1, 1, 2, 4: scores 1/8, 1/7, 2/6, 1.
        ("a", "kernel"): np.sqrt(np.array([[1.0, 1.0], [2.0, 4.0]])),
        # Squares 1, 9: scores 1/10, 1.
        ("b", "kernel"): np.array([[-3.0, 1.0]]),
    }
    for kept, (a, b) in {2: (1, 1), 3: (2, 1), 4: (3, 1), 5: (4, 1), 6: (4, 2)}.items():
        assert_allclose(list(lamp(kernels, kept / 6).values()), [a / 4, b / 2], rtol=1e-9)
    # Of equal scores the first layers' are taken.
    assert_allclose(list(lamp(kernels, 1 / 6).values()), [1 / 4, 0.0], atol=1e-9)


def test_lamp_of_a_layer_of_zeros():
    kernels = {("a", "kernel"): np.zeros((2, 2)), ("b", "kernel"): np.ones((2, 2))}
    assert list(lamp(kernels, 0.5, 0.1).values()) == pytest.approx([0.1, 0.9])


def test_everything_is_kept_at_rate_one():
    kernels = {("a", "kernel"): np.arange(4.0).reshape(2, 2), ("b", "kernel"): np.ones((3, 2))}
    for strategy in STRATEGIES.values():
        assert list(strategy(kernels, 1.0, 0.1).values()) == [1.0, 1.0]


@pytest.mark.parametrize("rate", RATES)
def test_global_magnitude_counts_what_one_threshold_leaves(network, rate):
    kernels, layers = network
    everything = np.sort(np.concatenate([np.abs(k).ravel() for k in kernels.values()]))
    threshold = everything[-round(rate * layers.size)]
    found = global_magnitude(kernels, rate)
    for path, kernel in kernels.items():
        assert found[path] == (np.abs(kernel) >= threshold).sum() / kernel.size


def test_of_equal_magnitudes_the_first_layers_are_taken():
    kernels = {("a", "kernel"): np.array([[1.0, -3.0]]), ("b", "kernel"): np.array([[3.0, -1.0]])}
    assert list(global_magnitude(kernels, 1 / 4).values()) == [0.5, 0.0]
    assert list(global_magnitude(kernels, 3 / 4).values()) == [1.0, 0.5]


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize("rate", RATES)
def test_whole_counts_spend_a_budget_to_the_weight(network, strategy, rate):
    kernels, layers = network
    minimum, budget = 0.1 * rate, int(rate * layers.size)
    sizes = {path: kernel.size for path, kernel in kernels.items()}
    rates = strategy(kernels, rate, minimum)
    counts = whole_counts(rates, sizes, budget, minimum)
    assert sum(counts.values()) == budget
    for path, count in counts.items():
        assert abs(count - rates[path] * sizes[path]) < 2
        logit = logit_from_count(count, sizes[path], minimum)
        assert kept_weights(rate_from_logit(logit, minimum), sizes[path]) == count


def test_every_count_of_a_layer_has_its_logit():
    for minimum in (0.0, 0.05):
        for count in range(round(minimum * 40) + 1, 41):
            logit = logit_from_count(count, 40, minimum)
            assert kept_weights(rate_from_logit(logit, minimum), 40) == count
