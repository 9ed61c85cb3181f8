"""Strategies: rules that give every layer a compression rate, for a given overall rate."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harp_jax.pruning.layers import Path

Rates = dict[Path, float]
# (kernels by path, overall rate in (0, 1], smallest rate of a layer in [0, 1)) -> rate by path.
Strategy = Callable[[Mapping[Path, Any], float, float], Rates]

# Beyond any share's inverse: layers without a share (LAMP may give none) stay at the minimum.
_LARGEST_FACTOR = 1e12
_BISECTIONS = 100  # leaves nothing of an interval in float64


def uniform(kernels: Mapping[Path, Any], rate: float, minimum: float = 0.0) -> Rates:
    """Gives every layer the same rate (the authors' '010_uni' is `uniform` at 0.1).

    Args:
        kernels: Every kernel, by path; only the paths are used.
        rate: Fraction kept, in (0, 1].
        minimum: Not used, since no rate is below the overall one.

    Returns:
        The rate of every path.
    """
    del minimum
    return dict.fromkeys(kernels, rate)


def erk(kernels: Mapping[Path, Any], rate: float, minimum: float = 0.0) -> Rates:
    """Gives rates by Erdos-Renyi-kernel: large layers are sparser (Evci et al., 2020, Section 3).

    Rates are in proportion to (height + width + in + out) / (height * width * in * out), for dense
    layers to (in + out) / (in * out). Layers whose rate would exceed 1 stay dense, the rest is
    scaled until the budget holds.

    Args:
        kernels: Every kernel, by path; only the shapes are used.
        rate: Fraction of all weights kept, in (0, 1].
        minimum: Smallest rate of a layer, in [0, rate]; layers below it get it, and the rest is
            scaled so that the budget still holds.

    Returns:
        The rate of every path.
    """
    shares = {path: sum(kernel.shape) / kernel.size for path, kernel in kernels.items()}
    return _spend(shares, _sizes(kernels), rate, minimum)


def lamp(kernels: Mapping[Path, Any], rate: float, minimum: float = 0.0) -> Rates:
    """Gives rates by one threshold for the LAMP scores of all layers (Lee et al., 2021).

    A weight's LAMP score is its square over the sum of the squares of all weights of its layer that
    are at least as large; the largest weight of each layer has score 1. A layer's rate counts its
    weights among the highest scores of the whole network, equal scores in order of the layers.

    Args:
        kernels: Every kernel of the pre-trained network, by path.
        rate: Fraction of all weights kept, in (0, 1].
        minimum: Smallest rate of a layer, in [0, rate]; layers below it get it, and the rest is
            scaled so that the budget still holds.

    Returns:
        The rate of every path.
    """
    scores = {path: _lamp_scores(np.asarray(kernel)) for path, kernel in kernels.items()}
    return _one_threshold(scores, _sizes(kernels), rate, minimum)


def global_magnitude(kernels: Mapping[Path, Any], rate: float, minimum: float = 0.0) -> Rates:
    """Gives rates by one threshold for the magnitudes of all weights of the network.

    A layer's rate counts its weights among the largest of the whole network, equal ones in order of
    the layers. A layer could keep no weight; `minimum` prevents that.

    Args:
        kernels: Every kernel of the pre-trained network, by path.
        rate: Fraction of all weights kept, in (0, 1].
        minimum: Smallest rate of a layer, in [0, rate]; layers below it get it, and the rest is
            scaled so that the budget still holds.

    Returns:
        The rate of every path.
    """
    scores = {path: np.sort(np.abs(kernel), axis=None) for path, kernel in kernels.items()}
    return _one_threshold(scores, _sizes(kernels), rate, minimum)


def _one_threshold(
    scores: Mapping[Path, np.ndarray], sizes: Mapping[Path, int], rate: float, minimum: float
) -> Rates:
    """Computes each layer's share of the highest scores; scores ascend within a layer."""
    left = max(round(rate * sum(sizes.values())), 1)
    threshold = np.partition(np.concatenate(list(scores.values())), -left)[-left]
    above = {path: len(s) - int(s.searchsorted(threshold, "right")) for path, s in scores.items()}
    left -= sum(above.values())
    shares = {}
    for path, ascending in scores.items():
        equal = len(ascending) - int(ascending.searchsorted(threshold)) - above[path]
        taken = min(equal, left)
        left -= taken
        shares[path] = (above[path] + taken) / sizes[path]
    if min(shares.values()) >= minimum:
        return shares
    return _spend(shares, sizes, rate, minimum)


def _lamp_scores(kernel: np.ndarray) -> np.ndarray:
    """Computes the LAMP scores of a kernel's weights, ascending, in float64."""
    squares = np.sort(np.square(kernel.ravel(), dtype=np.float64))
    at_least_as_large = squares[::-1].cumsum()[::-1]
    return squares / np.where(at_least_as_large > 0, at_least_as_large, 1.0)


def _sizes(kernels: Mapping[Path, Any]) -> dict[Path, int]:
    return {path: kernel.size for path, kernel in kernels.items()}


def _spend(
    shares: Mapping[Path, float], sizes: Mapping[Path, int], rate: float, minimum: float
) -> Rates:
    """Computes rates in proportion to shares, in [minimum, 1], that keep `rate` of all weights.

    One factor scales all shares, which are then clipped to the bounds. The kept number grows with
    the factor, so that bisection finds the factor.
    """
    budget = rate * sum(sizes.values())

    def scaled(factor: float) -> Rates:
        return {path: min(max(factor * share, minimum), 1.0) for path, share in shares.items()}

    def kept(factor: float) -> float:
        return sum(rate * sizes[path] for path, rate in scaled(factor).items())

    low, high = 0.0, 1.0
    while kept(high) < budget and high < _LARGEST_FACTOR:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) < budget else (low, middle)
    return scaled(high)


STRATEGIES: dict[str, Strategy] = {
    "uniform": uniform,
    "erk": erk,
    "lamp": lamp,
    "global": global_magnitude,
}
