"""The record of a checkpoint: with it damage is found when the checkpoint is read.

It has the type, shape and CRC-32 of every array, and the CRC-32 of the metadata and of the run's
config.json. A CRC-32 finds every flipped bit and every gap of up to four bytes, and misses one in
four billion of all other damage. It does not protect from intent.
"""

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

RECORD, METADATA = "record", "metadata"  # items of a checkpoint
VARIABLES, TRAINING = "variables", "training"
TREES = (VARIABLES, TRAINING)


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by their paths, such as 'params/conv1/kernel'."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in found
    }


def make(items: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    """Makes the record of a checkpoint.

    Args:
        items: The items by name: trees of arrays, and the metadata.
        run: Content of the run's config.json; None if there is none.

    Returns:
        A JSON-like object.
    """
    return {"run": run, "checksums": {**_checksums(items), "run": _of_json(run)}}


def problem(record: Any, items: Mapping[str, Any]) -> str | None:
    """Compares what was read with the record.

    Args:
        record: What was read as the record.
        items: The items that were read, by name; not all need to be there.

    Returns:
        What is damaged first, such as "params/a/kernel: has other bytes"; None if nothing is.
    """
    checksums = record.get("checksums") if isinstance(record, dict) else None
    if not isinstance(checksums, dict) or checksums.get("run") != _of_json(record.get("run")):
        return f"{RECORD}: is not what was saved"
    for name, found in _checksums(items).items():
        saved = checksums.get(name)
        if isinstance(found, str):
            if found != saved:
                return f"{name}: is not what was saved"
            continue
        if not isinstance(saved, dict):
            return f"{RECORD}: has no {name}"
        for path in sorted(saved.keys() | found.keys()):
            if path not in found:
                return f"{name}: {path} is missing"
            if found[path] != saved.get(path):
                return f"{name}: {path} is {found[path]}, saved was {saved.get(path)}"
    return None


def _checksums(items: Mapping[str, Any]) -> dict[str, Any]:
    """Returns "TYPE SHAPE CRC-32" of each array, by item and path, and those of JSON items."""
    trees = {name: by_path(tree) for name, tree in items.items() if name in TREES}
    arrays = [array for leaves in trees.values() for array in leaves.values()]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        texts = iter(list(threads.map(_of_array, arrays)))
    found: dict[str, Any] = {
        name: {path: next(texts) for path in leaves} for name, leaves in trees.items()
    }
    return {**found, **{name: _of_json(items[name]) for name in items if name not in TREES}}


def _of_array(array: np.ndarray) -> str:
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return f"{array.dtype} {list(array.shape)} {zlib.crc32(content):08x}"


def _of_json(content: Any) -> str:
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
