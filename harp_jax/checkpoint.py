"""Checkpoints with Orbax: written atomically, read back with or without the model code.

A checkpoint is a folder of items: `variables` (params, batch_stats and, when pruned, scores, rates,
minimum_rates), `metadata` (JSON) and, where a stage can be resumed from it, `training` (step, key,
optimiser state, sums, Free-AT's perturbation). A stage's folder holds

    checkpoints/last/STEP   the newest state, to resume from
    checkpoints/best/STEP   the network with the best validation accuracy so far
    result                  the network that the stage hands on; there once the stage is complete
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from harp_jax.pruning.layers import leaves_by_path
from harp_jax.types import Variables

RESULT = "result"


class CheckpointError(ValueError):
    """A checkpoint that is missing or does not fit; the message names the path."""


class StageCheckpoints:
    """The `last` and `best` checkpoints of a stage that is being trained.

    Attributes:
        directory: The folder they are in.
    """

    def __init__(self, directory: epath.PathLike):
        self.directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._managers = {
            name: ocp.CheckpointManager(self.directory / name, options=options)
            for name in ("last", "best")
        }

    def save_best(self, step: int, variables: Variables, metadata: dict[str, Any]) -> None:
        """Keeps the network of a step as the best; returns when it is on disk."""
        items = {"variables": ocp.args.StandardSave(dict(variables))}
        self._save("best", step, items, metadata)
        # `last` will say that this one exists, so it must.
        self._managers["best"].wait_until_finished()

    def save_last(
        self, step: int, variables: Variables, training: Any, metadata: dict[str, Any]
    ) -> None:
        """Saves all that a resumed run needs, in the background.

        Args:
            step: Number of the checkpoint.
            variables: All collections of the network.
            training: The tree of what else a resumed run needs.
            metadata: JSON-like.
        """
        items = {
            "variables": ocp.args.StandardSave(dict(variables)),
            "training": ocp.args.StandardSave(training),
        }
        self._save("last", step, items, metadata)

    def _save(self, name: str, step: int, items: dict[str, Any], metadata: dict[str, Any]) -> None:
        manager = self._managers[name]
        if step in manager.all_steps():  # a resumed run comes by a second time, with the same bits
            return
        manager.save(
            step, args=ocp.args.Composite(**items, metadata=ocp.args.JsonSave(metadata)), force=True
        )

    def restore_last(
        self, variables: Variables, training: Any
    ) -> tuple[dict[str, Any], Any, dict[str, Any]] | None:
        """The newest of what `save_last` saved, or None; the arguments give the structure."""
        manager = self._managers["last"]
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
        """What `load` reads from the best checkpoint, or None if there is none yet."""
        step = self._managers["best"].latest_step()
        return None if step is None else load(self.directory / "best" / str(step))

    def close(self) -> None:
        """Waits until everything is on disk."""
        for manager in self._managers.values():
            manager.close()


def save_result(stage_directory: epath.PathLike, variables: Variables, metadata: Any) -> None:
    """Writes the network that a stage hands on, and so marks the stage as complete.

    Args:
        stage_directory: The stage's folder in the workdir.
        variables: All collections, as numpy arrays.
        metadata: JSON-like description.
    """
    arguments = ocp.args.Composite(
        variables=ocp.args.StandardSave(dict(variables)), metadata=ocp.args.JsonSave(metadata)
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(epath.Path(stage_directory) / RESULT, args=arguments, force=True)


def is_complete(stage_directory: epath.PathLike) -> bool:
    """Whether a stage has handed on its network."""
    result = epath.Path(stage_directory) / RESULT
    return result.exists() and ocp.utils.is_checkpoint_finalized(result)


def absolute(path: epath.PathLike) -> epath.Path:
    """A path as Orbax needs it: absolute if it is local, as it is if it is a URL such as gs://..."""
    path = epath.Path(path).expanduser()
    return path if "://" in os.fspath(path) else path.absolute()


def find(path: epath.PathLike) -> epath.Path:
    """The checkpoint folder that a path means.

    Args:
        path: A checkpoint, a stage's folder, or a workdir (then its last complete stage).

    Returns:
        The folder with the item `variables` in it.

    Raises:
        CheckpointError: If there is none.
    """
    path = absolute(path)
    candidates = [path, path / RESULT]
    candidates += [path / stage / RESULT for stage in ("finetune", "prune", "pretrain")]
    for name in ("best", "last"):
        folder = path / "checkpoints" / name
        steps = sorted(
            (int(step.name) for step in folder.iterdir() if step.name.isdigit())
            if folder.exists()
            else (),
            reverse=True,
        )
        candidates += [folder / str(step) for step in steps]
    for candidate in candidates:
        if (candidate / "variables").exists() and ocp.utils.is_checkpoint_finalized(candidate):
            return candidate
    raise CheckpointError(
        f"{path}: no checkpoint; allowed are a workdir, a stage's folder in it, or a checkpoint"
    )


def load(path: epath.PathLike) -> dict[str, Any]:
    """Reads a checkpoint as numpy arrays, without building the model.

    Args:
        path: A workdir (its last complete stage is read), a stage's folder, or a checkpoint.

    Returns:
        'params', 'batch_stats' and, for a pruned network, 'scores', 'rates' and 'minimum_rates' as
        nested dicts of numpy arrays, and 'metadata' as a dict.

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


def _leaves(tree: Variables) -> dict[str, Any]:
    return {"/".join(path): leaf for path, leaf in leaves_by_path(tree).items()}


def _map_leaves(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map_leaves(function, branch) for name, branch in tree.items()}
    return function(tree)


def check_fits(
    found: Variables, expected: Variables, collections: tuple[str, ...], source: str
) -> None:
    """Checks that a checkpoint's arrays are those of the network.

    Args:
        found: Collections of the checkpoint.
        expected: Collections of the network; arrays or shape structs.
        collections: Which of them must agree.
        source: Where the checkpoint came from, for the error.

    Raises:
        CheckpointError: Listing the keys that are missing, extra and differently shaped.
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
    """Checks that a network is used as it was trained, which its arrays do not tell.

    Args:
        found: Metadata of the checkpoint; what they do not say is not checked.
        expected: The values of this run, by name.
        source: Where the checkpoint came from, for the error.

    Raises:
        CheckpointError: Naming the first value that differs.
    """
    for name, value in expected.items():
        as_read = json.loads(json.dumps(value))
        if found.get(name, as_read) != as_read:
            raise CheckpointError(
                f"{source}: has {name}={found[name]!r}; allowed is that of this run, {as_read!r}"
            )
