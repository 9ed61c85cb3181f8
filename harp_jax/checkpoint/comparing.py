"""Comparing networks and their descriptions with what a run expects."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from harp_jax.checkpoint.reading import CheckpointError
from harp_jax.pruning.layers import leaves_by_path
from harp_jax.types import Variables


def digest(variables: Variables) -> str:
    """Computes a digest that tells networks apart.

    Args:
        variables: Collections of arrays; without 'metadata'.

    Returns:
        The SHA-256 of their paths, types, shapes and values, in hexadecimal.
    """
    found = hashlib.sha256()
    for path, leaf in sorted(leaves_by_path(variables).items()):
        array = np.ascontiguousarray(leaf)
        found.update(f"{'/'.join(path)} {array.dtype} {np.shape(leaf)}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _leaves(tree: Variables) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in leaves_by_path(tree).items()}


def _map_leaves(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map_leaves(function, branch) for name, branch in tree.items()}
    return function(tree)


def check_fits(
    found: Variables, expected: Variables, collections: tuple[str, ...], source: str
) -> None:
    """Checks that a checkpoint has the network's arrays: the same keys, shapes and types.

    Args:
        found: Collections of the checkpoint.
        expected: Collections of the network, arrays or shape structs.
        collections: Names of the collections to compare.
        source: Origin of the checkpoint, for the error message.

    Raises:
        CheckpointError: If they differ; lists missing keys, extra keys, different shapes and types.
    """
    have = _leaves({name: found.get(name, {}) for name in collections})
    want = _leaves({name: expected[name] for name in collections})
    missing = sorted(want.keys() - have.keys())
    extra = sorted(have.keys() - want.keys())
    reshaped = [
        f"{key} {tuple(have[key].shape)} instead of {tuple(want[key].shape)}"
        for key in sorted(want.keys() & have.keys())
        if tuple(have[key].shape) != tuple(want[key].shape)
    ]
    retyped = [
        f"{key} {have[key].dtype} instead of {want[key].dtype}"
        for key in sorted(want.keys() & have.keys())
        if have[key].dtype != want[key].dtype
    ]
    named = {
        "missing": missing,
        "extra": extra,
        "other shape": reshaped,
        "other type": retyped,
    }
    problems = [f"{what}: {', '.join(keys)}" for what, keys in named.items() if keys]
    if problems:
        raise CheckpointError(f"{source}: is not of this network; {'; '.join(problems)}")


def check_metadata(found: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> None:
    """Checks that a network is used with the settings of its training.

    Args:
        found: Metadata of the checkpoint; settings that it lacks are not checked.
        expected: Values of this run, by name.
        source: Origin of the checkpoint, for the error message.

    Raises:
        CheckpointError: If a value differs; names the first one.
    """
    for name, value in expected.items():
        as_read = json.loads(json.dumps(value))
        if found.get(name, as_read) != as_read:
            raise CheckpointError(
                f"{source}: has {name}={found[name]!r}; allowed is that of this run, {as_read!r}"
            )
