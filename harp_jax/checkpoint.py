"""Checkpoints with Orbax: written atomically, readable with or without the model code.

A checkpoint is a folder of items: `variables` (params, batch_stats and, if pruned, scores, rates,
minimum_rates), `metadata` (JSON) and, if a stage can resume from it, `training` (step, key,
optimiser state, sums, Free-AT's perturbation). A stage's folder holds

    checkpoints/last/STEP   the newest state, to resume from
    checkpoints/best/STEP   the network with the best validation accuracy so far
    result                  the network for the next stage; exists once the stage is complete
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from harp_jax.pruning.layers import leaves_by_path
from harp_jax.types import Variables
from harp_jax.workdir.files import BEST, CHECKPOINTS, LAST, RESULT, STAGES


class CheckpointError(ValueError):
    """Raised if a checkpoint is missing or does not fit; the message names its path."""


class StageCheckpoints:
    """The `last` and `best` checkpoints of a stage that is being trained.

    Attributes:
        directory: Folder of both.
    """

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._managers = {
            name: ocp.CheckpointManager(self.directory / name, options=options)
            for name in (LAST, BEST)
        }

    def save_best(self, step: int, variables: Variables, metadata: dict[str, Any]) -> None:
        """Saves the network of a step as the best one; returns when it is on disk."""
        items = {"variables": ocp.args.StandardSave(dict(variables))}
        self._save(BEST, step, items, metadata)
        # `last` will refer to this checkpoint, so it must exist first.
        self._managers[BEST].wait_until_finished()

    def save_last(
        self, step: int, variables: Variables, training: Any, metadata: dict[str, Any]
    ) -> None:
        """Saves the state to resume from, in the background.

        Args:
            step: Number of the checkpoint.
            variables: All collections of the network.
            training: All other state that a resumed run needs, a tree.
            metadata: JSON-like description.
        """
        items = {
            "variables": ocp.args.StandardSave(dict(variables)),
            "training": ocp.args.StandardSave(training),
        }
        self._save(LAST, step, items, metadata)

    def _save(self, name: str, step: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
        manager = self._managers[name]
        if step in manager.all_steps():  # a resumed run has repeated this step, with the same bits
            return
        manager.save(
            step, args=ocp.args.Composite(**items, metadata=ocp.args.JsonSave(metadata)), force=True
        )

    def restore_last(
        self, variables: Variables, training: Any
    ) -> tuple[dict[str, Any], Any, dict[str, Any]] | None:
        """Restores the newest state of `save_last`; None if there is none.

        Args:
            variables: Structure and shapes of the variables.
            training: Structure and shapes of the other state.

        Returns:
            Variables, other state and metadata.
        """
        manager = self._managers[LAST]
        step = manager.latest_step()
        if step is None:
            return None
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(dict(variables)),
                training=ocp.args.StandardRestore(training),
                metadata=ocp.args.JsonRestore(),
            ),
        )
        return restored["variables"], restored["training"], restored["metadata"]

    def best(self) -> dict[str, Any] | None:
        """Loads the best checkpoint, as `load` does; None if there is none yet."""
        step = self._managers[BEST].latest_step()
        return None if step is None else load(self.directory / BEST / str(step))

    def close(self) -> None:
        """Waits until everything is on disk."""
        for manager in self._managers.values():
            manager.close()


def save_result(stage_directory: epath.PathLike, variables: Variables, metadata: Any) -> None:
    """Writes the result of a stage, which marks the stage as complete.

    Args:
        stage_directory: Folder of the stage in the workdir.
        variables: All collections, as NumPy arrays.
        metadata: JSON-like description.
    """
    arguments = ocp.args.Composite(
        variables=ocp.args.StandardSave(dict(variables)), metadata=ocp.args.JsonSave(metadata)
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(epath.Path(stage_directory) / RESULT, args=arguments, force=True)


def is_complete(stage_directory: epath.PathLike) -> bool:
    """Returns whether a stage is complete."""
    result = epath.Path(stage_directory) / RESULT
    return result.exists() and ocp.utils.is_checkpoint_finalized(result)


def has_begun(stage_directory: epath.PathLike) -> bool:
    """Returns whether a stage is complete or has a checkpoint from which it would resume."""
    directory = epath.Path(stage_directory)
    steps = _steps(directory / CHECKPOINTS / LAST)
    return is_complete(directory) or any(map(ocp.utils.is_checkpoint_finalized, steps))


def _steps(folder: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints in a folder of numbered ones, the newest first."""
    steps = [each for each in folder.iterdir() if each.name.isdigit()] if folder.exists() else []
    return sorted(steps, key=lambda step: int(step.name), reverse=True)


def absolute(path: epath.PathLike) -> epath.Path:
    """Makes a local path absolute, as Orbax needs it; a URL such as gs://... stays the same."""
    path = epath.Path(path).expanduser()
    return path if "://" in os.fspath(path) else path.absolute()


def find(path: epath.PathLike) -> epath.Path:
    """Finds the checkpoint for a path.

    Args:
        path: A checkpoint, a folder of a stage, or a workdir (meaning its last complete stage).

    Returns:
        The folder that contains the item `variables`.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    path = absolute(path)
    candidates = [path, path / RESULT]
    candidates += [path / stage / RESULT for stage in reversed(STAGES)]
    for name in (BEST, LAST):
        candidates += _steps(path / CHECKPOINTS / name)
    for candidate in candidates:
        if (candidate / "variables").exists() and ocp.utils.is_checkpoint_finalized(candidate):
            return candidate
    raise CheckpointError(
        f"{path}: no checkpoint; allowed are a workdir, a stage's folder in it, or a checkpoint"
    )


def load(path: epath.PathLike) -> dict[str, Any]:
    """Reads a checkpoint as NumPy arrays, without building the model.

    Args:
        path: A checkpoint, a folder of a stage, or a workdir (meaning its last complete stage).

    Returns:
        Nested dicts of NumPy arrays: 'params', 'batch_stats' and, for a pruned network, 'scores',
        'rates' and 'minimum_rates'; and 'metadata', a dict.

    Raises:
        CheckpointError: If there is no readable checkpoint.
    """
    folder = find(path)
    try:
        handler = ocp.PyTreeCheckpointHandler()
        tree: Any = handler.metadata(folder / "variables").tree
        with ocp.Checkpointer(handler) as checkpointer:
            as_numpy = _map_leaves(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            variables = checkpointer.restore(
                folder / "variables", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
            metadata = checkpointer.restore(folder / "metadata")
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be read: {error}".splitlines()[0]) from error
    return {**variables, "metadata": metadata}


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
    """Checks that a checkpoint has the network's arrays: the same keys and shapes.

    Args:
        found: Collections of the checkpoint.
        expected: Collections of the network, arrays or shape structs.
        collections: Names of the collections to compare.
        source: Origin of the checkpoint, for the error message.

    Raises:
        CheckpointError: If they differ; lists missing keys, extra keys and different shapes.
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
    problems = [
        f"{what}: {', '.join(keys)}"
        for what, keys in (("missing", missing), ("extra", extra), ("other shape", reshaped))
        if keys
    ]
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
