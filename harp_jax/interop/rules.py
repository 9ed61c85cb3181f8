"""Decides whether a checkpoint is of a pruned network, and how its rates are read."""

import numpy as np

from harp_jax.export.errors import FileError
from harp_jax.interop.comparing import Comparison
from harp_jax.interop.layouts import RATE
from harp_jax.interop.options import ALPHA, Options
from harp_jax.interop.pruned import Rule

_MANY_ZEROS = 0.5  # of the weights: training alone leaves fewer


def rule(found: Comparison, options: Options) -> tuple[Rule | None, list[str]]:
    """Decides how scores and rates are read.

    Args:
        found: The checkpoint.
        options: What the user says of it.

    Returns:
        (rule, notes): the rule is None for a dense network.

    Raises:
        FileError: If the file and the options do not go together, or the options leave it open.
    """
    if not found.scores:
        return _without_scores(found, options)
    if options.rate == 1:
        return None, ["popup_scores are left out: rate=1 is a dense network"]
    if all(rate is None for _, rate in found.scores.values()):
        return _of_hydra(found, options)
    return _of_harp(found, options)


def _of_hydra(found: Comparison, options: Options) -> tuple[Rule, list[str]]:
    if options.rate is None:
        raise FileError(
            "rate=None: the file has popup_scores and no k_score, as HYDRA's; allowed is the rate"
            " that it was pruned to, as rate=0.01, or rate=1 for a dense network"
        )
    found.check_scores(with_rates=False)
    return Rule(0.0, options.rate), [f"every layer is pruned to rate={options.rate:g}, as HYDRA's"]


def _of_harp(found: Comparison, options: Options) -> tuple[Rule | None, list[str]]:
    if options.rate is not None:
        raise FileError(
            f"rate={options.rate:g}: the file has k_score, as HARP's; allowed is a target, or"
            " rate=1 for a dense network"
        )
    if options.target is not None:
        found.check_scores(with_rates=True)
        low, alpha = options.minimum, ALPHA if options.alpha is None else options.alpha
        text = f"rates are sigmoid(k_score) * (1 - {low:g}) + {low:g}, as HARP's"
        return Rule(low), [f"{text}: target={options.target:g}, alpha={alpha:g}"]
    rates = [rate for _, rate in found.scores.values() if rate is not None and rate.shape == ()]
    if len(rates) < len(found.scores) or any(float(rate.array()) != 1.0 for rate in rates):
        raise FileError(
            "target=None: the file has popup_scores and learned rates (k_score), as HARP's; allowed"
            " is the target that it was pruned to, as target=0.01, with its alpha, or rate=1 for a"
            " dense network"
        )
    return None, [
        "popup_scores and k_score are left out: every k_score is 1, as in the HARP authors'"
        " pretrained networks, which are dense"
    ]


def _without_scores(found: Comparison, options: Options) -> tuple[Rule | None, list[str]]:
    notes = _of_dense(found, options)
    arrays = [found.weights(name) for name in found.choice.layout.layers()]
    total = sum(array.size for array in arrays)
    kept = sum(int(np.count_nonzero(array)) for array in arrays)
    pruned_here = found.own is not None and kept < total
    if not pruned_here and kept > (1 - _MANY_ZEROS) * total:
        return None, notes
    counted = f"{total - kept} of {total} weights are exactly 0"
    if options.rate == 1:
        return None, [*notes, f"{counted}, and may train: rate=1 is a dense network"]
    text = f"{counted}: a pruned network, which keeps the other {kept}; with rate=1 a dense one"
    return Rule(0.0, zeros=True), [*notes, text]


def _of_dense(found: Comparison, options: Options) -> list[str]:
    for name, value in (("target", options.target), ("rate", options.rate)):
        if value is not None and value != 1:
            raise FileError(f"{name}={value:g}: the file has no popup_scores; allowed is none")
    names = (f"{found.choice.prefix}{name}.{RATE}" for name in found.choice.layout.layers())
    if any(name in found.choice.entries for name in names):
        return [
            "the file has k_score and no popup_scores, as the HARP authors' *_dense files, whose"
            " kernels are masked at one rate for all layers and not at the learned ones; of a"
            " pruned network import the file without _dense"
        ]
    return []
