"""What each stage trains: freezing as data.

| mode              | stage    | weights, biases | BatchNorm scale, bias | scores | rates |
|-------------------|----------|-----------------|-----------------------|--------|-------|
| pretrain          | pretrain | yes             | yes                   |        |       |
| harp              | prune    |                 | yes                   | yes    | yes   |
| score             | prune    |                 | yes                   | yes    |       |
| rate              | prune    |                 | yes                   |        | yes   |
| admm              | prune    | yes, unmasked   | yes                   | follow |       |
| magnitude, random | prune    |                 |                       |        |       |
| finetune          | finetune | yes             | yes                   |        |       |

BatchNorm's affine parameters keep training while the weights are fixed, as in the authors' code,
and its running statistics always follow. What a stage does not train is neither differentiated
nor seen by the optimiser. A stage that trains nothing has no epochs: it hands on what it starts
from.
"""

from typing import Any

from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves
from harp_jax.types import Variables

STAGES = ("pretrain", "prune", "finetune")
PRUNE_METHODS = ("harp", "score", "rate", "admm", "magnitude", "random")

TRAINS: dict[str, frozenset[str]] = {
    "pretrain": frozenset({"weights", "norm"}),
    "harp": frozenset({"scores", "rates", "norm"}),
    "score": frozenset({"scores", "norm"}),
    "rate": frozenset({"rates", "norm"}),
    "finetune": frozenset({"weights", "norm"}),
    # The place in this table is part of a mode's random key: new modes go to its end.
    "admm": frozenset({"weights", "norm"}),
    "magnitude": frozenset(),
    "random": frozenset(),
}
_FROZEN_COLLECTIONS = ("batch_stats", "minimum_rates")


def _group(path: tuple[str, ...], norms: set[tuple[str, ...]]) -> str:
    collection = path[0]
    if collection == "params":
        return "norm" if path[:-1] in norms else "weights"
    if collection in ("scores", "rates"):
        return collection
    if collection in _FROZEN_COLLECTIONS:
        return "never"
    raise ValueError(f"variables: unknown collection {collection!r} at {'/'.join(path)}")


def split(variables: Variables, mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits variables into those that a mode trains and the rest.

    Args:
        variables: All collections of the network.
        mode: A key of `TRAINS`.

    Returns:
        (trainable, frozen): nested dicts that `merge` puts together again.

    Raises:
        ValueError: if a collection belongs to no group.
    """
    leaves = leaves_by_path(variables)
    norms = {path[:-1] for path in leaves if path[-1] == "scale"}
    chosen = {path for path in leaves if _group(path, norms) in TRAINS[mode]}
    trainable = {path: leaf for path, leaf in leaves.items() if path in chosen}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in chosen}
    return tree_of_leaves(trainable), tree_of_leaves(frozen)


def merge(trainable: Variables, frozen: Variables) -> dict[str, Any]:
    """The whole variables again from the two parts of `split`."""
    return tree_of_leaves({**leaves_by_path(frozen), **leaves_by_path(trainable)})
