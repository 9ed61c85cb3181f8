"""Scores and rates of the HARP and HYDRA authors' checkpoints, with their masks weight for weight.

Their layers keep all but the int((1 - rate) * n) smallest of n magnitudes of popup_scores, in the
order of PyTorch's axes. HARP's rate is sigmoid(k_score) * (1 - target * alpha) + target * alpha, in
float32; HYDRA's is one number for all layers, in float64. With channels, round(rate * n) of a
layer's n inputs stay.
"""

from typing import NamedTuple

import numpy as np

from harp_jax.export import torch_names
from harp_jax.export.errors import FileError
from harp_jax.export.trained import Trained
from harp_jax.pruning.masks import kept_channels, kept_weights
from harp_jax.pruning.rates import logit_between, logit_from_count, rate_from_logit


class Rule(NamedTuple):
    """How a checkpoint's rates are to be read.

    Attributes:
        minimum: HARP's smallest rate, target * alpha; 0 for HYDRA.
        rate: HYDRA's rate; None for HARP.
        zeros: Whether the scores are the weights themselves, of which those that are 0 go.
    """

    minimum: float
    rate: float | None = None
    zeros: bool = False

    def kept(self, k_score: np.ndarray | None, scores: np.ndarray) -> int:
        """Returns how many weights of a layer stay."""
        if self.zeros:  # a layer keeps one at least, and be it 0
            return max(1, int(np.count_nonzero(scores)))
        return scores.size - self.removed(k_score, scores.size)

    def removed(self, k_score: np.ndarray | None, size: int) -> int:
        """Returns how many of `size` weights the authors' code removes."""
        if k_score is None:
            return int((1 - self._one_rate()) * size)
        return int((np.float32(1) - self._rate(k_score)) * np.float32(size))

    def kept_channels(self, k_score: np.ndarray | None, size: int) -> int:
        """Returns how many of `size` channels the authors' code keeps."""
        rate = np.float32(self._one_rate()) if k_score is None else self._rate(k_score)
        return int(np.round(rate * np.float32(size)))

    def _one_rate(self) -> float:
        if self.rate is None:
            raise FileError("a layer has no k_score")
        return self.rate

    def _rate(self, k_score: np.ndarray) -> np.float32:
        """Computes HARP's rate step by step in float32, as PyTorch does."""
        power = np.float32(np.exp(-np.float64(np.float32(k_score.reshape(())))))
        share = np.float32(1) / (np.float32(1) + power)
        return share * np.float32(1 - self.minimum) + np.float32(self.minimum)


class Layer(NamedTuple):
    """A pruned layer.

    Attributes:
        scores: In Flax' order of axes.
        logit: Of the rate.
        moved: Whether the logit is not the file's, so that the mask is.
    """

    scores: np.ndarray
    logit: np.ndarray
    moved: bool


def layer(
    trained: Trained,
    path: str,
    shape: tuple[int, ...],
    scores: np.ndarray,
    k_score: np.ndarray | None,
    rule: Rule,
) -> Layer:
    """Converts a layer's scores and rate, so that the mask is the authors'.

    Args:
        trained: The network, whose variables give the shapes.
        path: Path of the kernel.
        shape: Shape of the kernel in PyTorch's order of axes.
        scores: The popup_scores, of that shape or one for each input.
        k_score: HARP's logit; None for HYDRA.
        rule: How rates are read.

    Returns:
        The layer.

    Raises:
        FileError: If nothing is kept, or no rate keeps as many.
    """
    of_weights = scores.shape == shape
    size = scores.size
    if of_weights:
        count = rule.kept(k_score, scores)
    else:
        count = rule.kept_channels(k_score, size)
    if not 1 <= count <= size:
        raise FileError(f"{path}: its rate keeps {count} of {size}; allowed is at least one")
    scores = without_ties(scores.astype(np.float32), largest(np.abs(scores), count))
    logit, moved = _logit(k_score, count, size, rule.minimum, of_weights)
    turned = torch_names.turned_back(trained, path, scores)
    turned = np.ascontiguousarray(turned if of_weights else turned.reshape(-1))
    if _kept(logit, size, rule.minimum, of_weights) != count:
        raise FileError(f"{path}: no rate above {rule.minimum:g} keeps {count} of {size}")
    return Layer(turned, logit, moved)


def largest(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """Finds the `count` largest entries; of equal ones those that come last, as a stable sort does.

    Args:
        magnitudes: Any shape, in PyTorch's order of axes.
        count: From 1 to all.

    Returns:
        Flags in the same shape.
    """
    flat = magnitudes.ravel()
    threshold = np.partition(flat, flat.size - count)[flat.size - count]
    kept = flat > threshold
    equal = np.flatnonzero(flat == threshold)
    kept[equal[equal.size - (count - kept.sum()) :]] = True
    return kept.reshape(magnitudes.shape)


def without_ties(scores: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Makes the kept entries larger than all others, so that no order of equal ones matters.

    Entries that are as large as the smallest kept one but removed become the next smaller number;
    where that one is 0, the kept zeros become the smallest normal number instead.

    Args:
        scores: Any shape, float32.
        kept: Which are to be kept, from `largest`.

    Returns:
        The scores; new ones if an entry has changed.
    """
    magnitudes = np.abs(scores)
    threshold = magnitudes[kept].min()
    tied = ~kept & (magnitudes == threshold)
    if not tied.any():
        return scores
    scores = scores.copy()
    if threshold == 0:
        scores[kept & (magnitudes == 0)] = np.finfo(np.float32).tiny
    else:
        scores[tied] = np.nextafter(scores[tied], np.float32(0))
    return scores


def _kept(logit: np.ndarray, size: int, minimum: float, of_weights: bool) -> int:
    count = kept_weights if of_weights else kept_channels
    return int(count(rate_from_logit(logit, np.float32(minimum)), size))


def _logit(
    k_score: np.ndarray | None, count: int, size: int, minimum: float, of_weights: bool
) -> tuple[np.ndarray, bool]:
    """Returns the file's logit if it keeps `count` here too, else one that does."""
    if k_score is not None:
        logit = np.asarray(k_score.reshape(()), np.float32)
        if _kept(logit, size, minimum, of_weights) == count:
            return logit, False
    try:
        if of_weights:
            found = logit_from_count(count, size, minimum)
        else:
            found = logit_between((count - 0.5) / size, (count + 0.5) / size, minimum)
    except (ValueError, ZeroDivisionError) as error:
        raise FileError(f"no rate above {minimum:g} keeps {count} of {size}") from error
    return np.asarray(found, np.float32), k_score is not None
