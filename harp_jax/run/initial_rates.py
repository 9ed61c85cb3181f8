"""Finds the rates that pruning starts from: by a rule, from a JSON file or from a checkpoint.

`prune.strategy` is the name of a rule in `harp_jax.pruning.strategies`, 'json:PATH' or
'checkpoint:PATH'. A file holds one object, {"layer name": rate, ...}; the prune stage writes one,
`strategy.json`. Rates that are read are not changed, except that rates below a_min start at a_min.
Rates that learn may spend any budget together; they start where the sigmoid is not flat, at most at
0.99 of its range, so that they have a gradient. Rates that do not learn are shifted onto the target
if they spend more than it allows, and the log says so.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath

from harp_jax import checkpoint
from harp_jax.config.defaults import CHECKPOINT, JSON
from harp_jax.config.sections import Config, ConfigError, method, minimum_rate
from harp_jax.pruning.budget import lowest_counts, shift_to_budget, whole_counts
from harp_jax.pruning.costs import WeightCost, parameter_costs
from harp_jax.pruning.layers import (
    Path,
    kernel_paths,
    layer_name,
    leaves_by_path,
    rates_of,
    tree_of_leaves,
)
from harp_jax.pruning.masks import kept_weights
from harp_jax.pruning.rates import logit_from_count
from harp_jax.pruning.schemes import Scheme
from harp_jax.pruning.sparsity import LayerSparsity, layer_sparsity
from harp_jax.pruning.strategies import STRATEGIES, Rates
from harp_jax.types import Variables
from harp_jax.workdir import checksums, files, parsing, write_json

LARGEST = 2**20  # bytes of a file of rates
RATES = '{"layer name": rate, ...}'

_LOGGER = logging.getLogger(__name__)


def start_pruning(
    config: Config, variables: Variables, scheme: Scheme, workdir: epath.Path
) -> dict[str, Any]:
    """Returns the variables that the prune stage starts from.

    Rates that learn start at `prune.initial_rate`, or at the target if that is higher, and the
    compression loss pulls them down to the target. Fixed rates start on the target: those of a rule
    keep exactly as many weights as it allows. The rates are logged, and the first process writes
    them to strategy.json.

    Args:
        config: A valid configuration.
        variables: Variables of the dense network.
        scheme: The scheme of the network.
        workdir: Folder of the run.

    Returns:
        The variables with scores, rates and minimum rates.

    Raises:
        ConfigError: If the strategy's file or checkpoint does not give the rates of this network.
    """
    target, minimum = config.prune.target, minimum_rate(config)
    fixed = "rates" not in method(config).trains
    layers = {layer.path for layer in scheme.architecture.layers}
    paths = [path for path in kernel_paths(variables["params"]) if path in layers]
    sizes = parameter_costs(variables["params"], paths)
    rates = read(config, scheme.architecture.pruned)
    by_rule = rates is None
    if rates is None:
        leaves = leaves_by_path(variables["params"])
        kernels = {path: leaves[path] for path in sizes}
        overall = target if fixed else max(config.prune.initial_rate, target)
        rates = STRATEGIES[config.prune.strategy](kernels, overall, minimum)
    pruned = scheme.make_prunable(variables, rates, minimum)
    if fixed:
        logits, share = leaves_by_path(pruned["rates"]), scheme.cost.target_share(target)
        if isinstance(scheme.cost, WeightCost):
            if by_rule:
                counts = whole_counts(rates, sizes, int(share * scheme.cost.total), minimum)
            else:
                counts = _counts_as_read(rates, sizes, minimum)
            logits = {path: logit_from_count(n, sizes[path], minimum) for path, n in counts.items()}
        logits, shift = shift_to_budget(logits, minimum, scheme.cost, share)
        if shift:
            _LOGGER.warning(
                "prune.strategy=%r: keeps more than prune.target=%g; all logits were shifted by"
                " %.4g",
                config.prune.strategy,
                target,
                shift,
            )
        pruned["rates"] = tree_of_leaves(logits)
    found = rates_of(pruned)
    rates = {path: float(found[path]) for path in sizes if path in found}
    _LOGGER.info("prune: %s\n%s", config.prune.strategy, table(layer_sparsity(pruned)))
    save(rates, workdir / files.STRATEGY)
    return pruned


def _counts_as_read(rates: Rates, sizes: Mapping[Path, int], minimum: float) -> dict[Path, int]:
    """Counts the weights that masks keep at the rates themselves, also at rates close to 1."""
    counts = {
        path: int(kept_weights(jnp.float32(rate), sizes[path])) for path, rate in rates.items()
    }
    lowest = lowest_counts(sizes, minimum)
    return {path: max(count, lowest[path]) for path, count in counts.items()}


def read(config: Config, paths: list[Path]) -> Rates | None:
    """Reads the rates of a strategy that is a file or a checkpoint.

    Args:
        config: A valid configuration.
        paths: The kernels of the network.

    Returns:
        The rate of every path, or None for a strategy that is a rule.

    Raises:
        ConfigError: If the strategy cannot be read, lacks layers, has unknown ones, or has rates
            outside (0, 1].
    """
    strategy = config.prune.strategy
    if strategy in STRATEGIES:
        return None
    try:
        if strategy.startswith(JSON):
            found = _from_json(strategy.removeprefix(JSON))
        else:
            found = _from_checkpoint(strategy.removeprefix(CHECKPOINT))
        return _of_network(found, paths)
    except OSError as error:
        text = f"{error.strerror or error}; allowed are files with {RATES}"
        raise ConfigError(f"prune.strategy={strategy!r}: {text}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        text = f"is no JSON ({error}); allowed is {RATES}"
        raise ConfigError(f"prune.strategy={strategy!r}: {text}") from None
    except ValueError as error:
        path = checkpoint.absolute(strategy.removeprefix(CHECKPOINT))
        text = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise ConfigError(f"prune.strategy={strategy!r}: {text}") from None


def _from_json(path: str) -> dict[str, Any]:
    found = parsing.parse(parsing.read(checkpoint.absolute(path), largest=LARGEST))
    if not isinstance(found, dict):
        raise ValueError(f"is no object; allowed is {RATES}")
    wrong = checksums.problem(found)
    if wrong is not None:
        raise ValueError(f"{wrong}; remove the checksum if it was edited")
    return checksums.bare(found)


def _from_checkpoint(path: str) -> dict[str, Any]:
    found = checkpoint.load(path)
    if "rates" not in found:
        raise ValueError("is of a dense network; allowed are those of pruned ones")
    return {layer_name(path): float(rate) for path, rate in rates_of(found).items()}


def _of_network(found: Mapping[str, Any], paths: list[Path]) -> Rates:
    names = {layer_name(path): path for path in paths}
    unknown = ", ".join(repr(name) for name in found if name not in names)
    if unknown:
        raise ValueError(f"unknown layers {unknown}; allowed are {', '.join(names)}")
    missing = ", ".join(repr(name) for name in names if name not in found)
    if missing:
        raise ValueError(f"no rate for {missing}; allowed are rates for all layers")
    for name, rate in found.items():
        if isinstance(rate, bool) or not (isinstance(rate, int | float) and 0 < rate <= 1):
            raise ValueError(f"{name}={rate!r}: allowed are numbers in (0, 1]")
    return {path: float(found[name]) for name, path in names.items()}


def save(rates: Rates, path: epath.Path) -> None:
    """Writes rates as a file that 'json:PATH' reads."""
    found = {layer_name(kernel): rate for kernel, rate in rates.items()}
    write_json(path, checksums.signed(found))


def check(path: epath.Path) -> None:
    """Logs that the file of the rates that pruning started from is damaged or gone."""
    try:
        _from_json(os.fspath(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        _LOGGER.warning("%s: cannot be read (%s); networks do not depend on it", path, reason)


def table(layers: Sequence[LayerSparsity]) -> str:
    """Builds a table of layers with their weights, rate and kept weights, and the sums.

    Args:
        layers: The layers of the network, with what their masks keep.

    Returns:
        Lines for the log, aligned. The rate of all layers is the share of the weights kept.
    """
    rows = [(row.layer, row.parameters, row.rate, row.kept) for row in layers]
    total, kept = sum(row.parameters for row in layers), sum(row.kept for row in layers)
    rows.append(("all layers", total, kept / total, kept))
    width = max(len(name) for name, *_ in rows)
    head = f"{'layer':<{width}} {'weights':>12} {'rate':>8} {'kept':>12}"
    lines = [
        f"{name:<{width}} {size:>12,} {1.0 if rate is None else rate:>8.4f} {left:>12,}"
        for name, size, rate, left in rows
    ]
    return "\n".join([head, *lines])
