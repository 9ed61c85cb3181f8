"""The checkpoints of a stage in training: saving them, and resuming from the newest whole one."""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from harp_jax import parallel
from harp_jax.checkpoint import reading
from harp_jax.checkpoint.reading import CheckpointError, DamagedCheckpointError
from harp_jax.checkpoint.record import METADATA, TRAINING, TREES, VARIABLES, by_path
from harp_jax.checkpoint.writing import arguments
from harp_jax.types import Variables
from harp_jax.workdir.files import BEST, LAST, is_remote, writing

_LOGGER = logging.getLogger(__name__)
# In the metadata: the step of the checkpoint; in that of a state, of the best network so far.
_STEP, _BEST_STEP = "step", "best_step"


class StageCheckpoints:
    """The `last` and `best` checkpoints of a stage that is being trained.

    Attributes:
        directory: Folder of both.
    """

    def __init__(
        self, directory: epath.PathLike, keep: int = 2, run: Mapping[str, Any] | None = None
    ):
        """Opens the checkpoints.

        Args:
            directory: Folder of both; created if needed.
            keep: States to resume from that are kept, >= 1.
            run: Content of the run's config.json, saved in each checkpoint.
        """
        self.directory = epath.Path(directory)
        self._run = run
        # A best network is saved before the state that refers to it, so there is one more of them.
        with writing(self.directory):
            self._managers = {
                name: ocp.CheckpointManager(
                    self.directory / name,
                    options=ocp.CheckpointManagerOptions(
                        max_to_keep=number,
                        create=True,
                        lightweight_initialize=True,  # damaged ones are looked at by `restore_last`
                    ),
                )
                for name, number in ((LAST, keep), (BEST, keep + 1))
            }
        self._best: int | None = None  # step of the best network of the state that is trained

    def save_best(self, step: int, variables: Variables, metadata: dict[str, Any]) -> None:
        """Saves the network of a step as the best one; returns when it is on disk."""
        self._save(BEST, step, {VARIABLES: dict(variables)}, metadata)
        # `last` will refer to this checkpoint, so it must exist first.
        with writing(self.directory / BEST):
            self._managers[BEST].wait_until_finished()
        self._best = step

    def save_last(
        self, step: int, variables: Variables, training: Any, metadata: dict[str, Any]
    ) -> None:
        """Saves the state to resume from, in the background.

        Args:
            step: Number of the checkpoint.
            variables: All collections of the network, as NumPy arrays.
            training: All other state that a resumed run needs, a tree of NumPy arrays.
            metadata: JSON-like description.
        """
        trees = {VARIABLES: dict(variables), TRAINING: training}
        self._save(LAST, step, trees, {**metadata, _BEST_STEP: self._best})

    def _save(self, name: str, step: int, trees: dict[str, Any], metadata: dict[str, Any]) -> None:
        manager = self._managers[name]
        items = arguments(trees, {**metadata, _STEP: step}, self._run)
        with writing(self.directory / name):
            if not is_remote(self.directory):  # buckets have no empty folders
                (self.directory / name).stat()  # Orbax would make a new one in place of one gone
            for later in [each for each in manager.all_steps() if each >= step]:
                manager.delete(later)  # of before this run resumed: damaged, or it makes them again
            manager.save(step, args=items, force=True)

    def restore_last(
        self, variables: Variables, training: Any
    ) -> tuple[dict[str, Any], Any, dict[str, Any]] | None:
        """Restores the newest whole state of `save_last`; None if there is none.

        A state is whole if it and its best network are what was saved. The log says in one line
        what is damaged, and how many steps are trained again.

        Args:
            variables: Structure, shapes and types of the variables.
            training: Structure, shapes and types of the other state.

        Returns:
            Variables, other state and metadata.

        Raises:
            CheckpointError: If it has other arrays, or this user may not read it.
        """
        damage: list[str] = []
        folders = reading.finalized(self.directory / LAST)
        for folder in folders:
            try:
                found, wrong = self._whole(folder), None
            except DamagedCheckpointError as error:
                found, wrong = None, str(error)
            if parallel.anywhere(wrong is not None):  # all processes resume from the same state
                damage.append(wrong or f"{folder}: another process cannot read it")
                continue
            assert found is not None
            _say_lost(damage, int(folders[0].name), int(folder.name))
            self._best = found[METADATA].pop(_BEST_STEP, self._newest_best(int(folder.name)))
            trees = zip(TREES, (variables, training), strict=True)
            parts = [_placed(found[name], tree, f"{folder}/{name}") for name, tree in trees]
            return parts[0], parts[1], found[METADATA]
        if damage:
            _say_lost(damage, int(folders[0].name), 0)
        return None

    def _whole(self, folder: epath.Path) -> dict[str, Any]:
        """Reads a state; raises a DamagedCheckpointError if it or its best network is damaged."""
        found = _read(folder, TREES)
        best = found[METADATA].get(_BEST_STEP)
        if best is not None:
            _read(self.directory / BEST / str(best), (VARIABLES,))
        return found

    def _newest_best(self, step: int) -> int | None:
        """Returns the step of the best network of a state that does not record it."""
        steps = [each for each in self._managers[BEST].all_steps() if each <= step]
        return max(steps, default=None)

    def best(self) -> dict[str, Any] | None:
        """Loads the best network, as `load` does; None if there is none yet.

        Raises:
            DamagedCheckpointError: If it is not what was saved.
        """
        if self._best is None:
            return None
        try:
            found = _read(self.directory / BEST / str(self._best), (VARIABLES,))
        except DamagedCheckpointError as error:
            advice = "the same command goes on from a state before it"
            raise DamagedCheckpointError(f"{error}; {advice}") from None
        return {**found[VARIABLES], METADATA: found[METADATA]}

    def close(self) -> None:
        """Waits until everything is on disk; raises a `WriteError` if that fails."""
        with contextlib.ExitStack() as all_of_them:
            for name, manager in self._managers.items():
                all_of_them.enter_context(writing(self.directory / name))
                all_of_them.callback(manager.close)


def _read(folder: epath.Path, trees: Sequence[str]) -> dict[str, Any]:
    """Reads a checkpoint; one that is not of the step in its path counts as damaged."""
    found = reading.read(folder, trees)
    step = found[METADATA].pop(_STEP, folder.name)  # older versions did not save it
    if str(step) != folder.name:
        raise DamagedCheckpointError(f"{folder}: is damaged (it is of step {step})")
    return found


def _say_lost(damage: list[str], newest: int, step: int) -> None:
    """Logs what is damaged, and where the stage goes on, in one line."""
    if damage:
        where = f"step {step}" if step else "the start of the stage"
        lost = f"{newest - step} steps are trained again"
        _LOGGER.warning("%s; goes on from %s: %s", "; ".join(damage), where, lost)


def _placed(found: Any, tree: Any, source: str) -> Any:
    """Puts arrays into the structure of a tree; raises a CheckpointError if they do not fit."""
    have, want = by_path(found), by_path(tree)
    for path in sorted(have.keys() | want.keys()):
        one, other = (
            f"{each[path].dtype} {list(each[path].shape)}" if path in each else "missing"
            for each in (have, want)
        )
        if one != other:
            raise CheckpointError(f"{source}: is not of this run ({path}: {one}, not {other})")
    return jax.tree.unflatten(jax.tree.structure(tree), [have[path] for path in want])
