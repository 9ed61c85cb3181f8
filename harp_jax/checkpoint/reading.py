"""Finding and reading checkpoints, without the model; damage is an error in one line."""

import functools
import gc
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from harp_jax.checkpoint import record
from harp_jax.checkpoint.record import METADATA, RECORD, VARIABLES
from harp_jax.workdir.files import BEST, CHECKPOINTS, LAST, RESULT, STAGES, is_remote

_LOGGER = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """Raised if a checkpoint is missing or does not fit; the message names its path."""


class DamagedCheckpointError(CheckpointError):
    """Raised if a checkpoint is not what was saved; the message names its path and the damage."""


class Origin(NamedTuple):
    """Where a checkpoint was saved.

    Attributes:
        folder: The checkpoint.
        run: Content of the run's config.json; None if it had none.
        stage: The stage; None if that is not recorded.
    """

    folder: epath.Path
    run: dict[str, Any] | None
    stage: str | None


def is_complete(stage_directory: epath.PathLike) -> bool:
    """Returns whether a stage is complete."""
    return _is_finalized(epath.Path(stage_directory) / RESULT)


def has_begun(stage_directory: epath.PathLike) -> bool:
    """Returns whether a stage is complete or has a checkpoint from which it would resume."""
    directory = epath.Path(stage_directory)
    return is_complete(directory) or bool(finalized(directory / CHECKPOINTS / LAST))


def finalized(folder: epath.Path) -> list[epath.Path]:
    """Returns the checkpoints in a folder of numbered ones, the newest first."""
    steps = [each for each in folder.iterdir() if each.name.isdigit()] if folder.exists() else []
    newest_first = sorted(steps, key=lambda step: int(step.name), reverse=True)
    return [step for step in newest_first if _is_finalized(step)]


def _is_finalized(folder: epath.Path) -> bool:
    return folder.exists() and ocp.utils.is_checkpoint_finalized(folder)


def saved(workdir: epath.PathLike) -> str:
    """Says what of a run is saved, such as 'saved are pretrain, and prune up to step 40'."""
    found = []
    for stage in STAGES:
        directory = absolute(workdir) / stage
        if is_complete(directory):
            found.append(stage)
        elif steps := finalized(directory / CHECKPOINTS / LAST):
            found.append(f"{stage} up to step {steps[0].name}")
    return f"saved are {', and '.join(found)}" if found else "nothing is saved yet"


def absolute(path: epath.PathLike) -> epath.Path:
    """Makes a local path absolute, as Orbax needs it; a URL such as gs://... stays the same."""
    path = epath.Path(path).expanduser()
    return path if is_remote(path) else path.absolute()


def find(path: epath.PathLike) -> epath.Path:
    """Finds the checkpoint for a path.

    Args:
        path: A checkpoint, a folder of a stage, or a workdir (meaning its last complete stage).

    Returns:
        The folder of the checkpoint. It may be damaged.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    path = absolute(path)
    if any((path / item).exists() for item in (VARIABLES, RECORD)) and _is_finalized(path):
        return path
    for folder in (path, *(path / stage for stage in reversed(STAGES))):
        if is_complete(folder):
            return folder / RESULT
    for name in (BEST, LAST):
        for newest in finalized(path / CHECKPOINTS / name):
            return newest
    raise CheckpointError(
        f"{path}: no checkpoint; allowed are a workdir, a stage's folder in it, or a checkpoint"
    )


def load(path: epath.PathLike) -> dict[str, Any]:
    """Reads a checkpoint as NumPy arrays, without building the model.

    Everything is compared with the checksums that were saved with it. A checkpoint of an older
    version has none; the log says so.

    Args:
        path: A checkpoint, a folder of a stage, or a workdir (meaning its last complete stage).

    Returns:
        Nested dicts of NumPy arrays: 'params', 'batch_stats' and, for a pruned network, 'scores',
        'rates' and 'minimum_rates'; and 'metadata', a dict.

    Raises:
        CheckpointError: If there is no checkpoint, or this user may not read it.
        DamagedCheckpointError: If it is not what was saved.
    """
    folder = find(path)
    try:
        found = read(folder, (VARIABLES,))
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{error}{_advice(folder)}") from None
    return {**found[VARIABLES], METADATA: found[METADATA]}


def _advice(folder: epath.Path) -> str:
    """Says how a run goes on whose result is damaged."""
    if folder.name != RESULT:
        return ""
    kept = (folder.parent / CHECKPOINTS).exists()
    way = "from the stage's checkpoints" if kept else "from the stage's start"
    return f"; remove this folder, and the command of its run makes it again {way}"


def read(folder: epath.Path, trees: Sequence[str]) -> dict[str, Any]:
    """Reads items of a checkpoint as they were saved, and compares them with its record.

    Args:
        folder: The checkpoint.
        trees: Names of the items with arrays to read.

    Returns:
        The trees, as nested dicts and lists of NumPy arrays, and 'metadata', by name.

    Raises:
        CheckpointError: If this user may not read it.
        DamagedCheckpointError: If something cannot be read, or is not what was saved.
    """
    item, wrong, has_record = RECORD, None, False
    try:
        has_record = (folder / RECORD).exists()
        saved = _read_json(folder / RECORD) if has_record else None
        found: dict[str, Any] = {}
        for item in trees:
            found[item] = _read_tree(folder / item, ours=has_record)
        item = METADATA
        found[item] = _read_json(folder / item)
    except PermissionError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    except Exception as error:  # damaged bytes make Orbax and TensorStore raise anything
        wrong = f"{item}: {_in_a_line(error)}"
    if wrong is not None:
        _collect_quietly()
        raise DamagedCheckpointError(f"{folder}: is damaged ({wrong})")
    if not has_record:
        _say_unchecked(folder)
        return found
    wrong = record.problem(saved, found)
    if wrong is not None:
        raise DamagedCheckpointError(f"{folder}: is damaged ({wrong})")
    return found


def recorded_run(workdir: epath.PathLike) -> dict[str, Any] | None:
    """Returns the config.json that the newest checkpoint of a workdir recorded; None without one.

    Args:
        workdir: Folder of a run whose own config.json may be gone.
    """
    for stage in reversed(STAGES):
        directory = epath.Path(workdir) / stage
        for folder in (directory / RESULT, *finalized(directory / CHECKPOINTS / LAST)):
            try:
                saved = _read_json(folder / RECORD)
            except (OSError, ValueError):  # an older version, or damage
                continue
            if record.problem(saved, {}) is None and saved["run"] is not None:
                return saved["run"]
    return None


def origins(stage_directory: epath.PathLike) -> Iterator[Origin]:
    """Yields what the checkpoints of a stage recorded of where they were saved.

    Args:
        stage_directory: Folder of the stage. A network that was put there without checkpoints
            beside it, as an imported one, was not trained there, and nothing is compared.
    """
    directory = epath.Path(stage_directory)
    checkpoints = directory / CHECKPOINTS
    if not checkpoints.exists():
        return
    steps = [step for name in (LAST, BEST) for step in finalized(checkpoints / name)]
    for folder in (directory / RESULT, *steps):
        try:
            saved, metadata = _read_json(folder / RECORD), _read_json(folder / METADATA)
        except (OSError, ValueError):  # an older version, or damage
            continue
        if record.problem(saved, {METADATA: metadata}) is None:
            yield Origin(folder, saved["run"], metadata.get("stage"))


def _read_json(folder: epath.Path) -> Any:
    return json.loads((folder / "metadata").read_bytes())  # the file of all Orbax' JSON items


def _read_tree(folder: epath.Path, *, ours: bool) -> Any:
    # Orbax' restoring into a tree of arrays would cast types and ignore shapes without a word.
    handler = ocp.PyTreeCheckpointHandler()
    if ours:  # saved as NumPy arrays, so they come back as such; to ask first takes a fifth longer
        return jax.tree.map(np.asarray, handler.restore(folder))
    structure: Any = handler.metadata(folder).tree
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        structure,
        is_leaf=lambda node: not isinstance(node, dict | list | tuple),
    )
    return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _in_a_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 200 else f"{text[:200]}..."


def _collect_quietly() -> None:
    """Collects what is left of a failed read; its other tasks would log their errors later."""
    logger = logging.getLogger("asyncio")
    before, logger.disabled = logger.disabled, True
    gc.collect()
    logger.disabled = before


@functools.cache
def _say_unchecked(folder: epath.Path) -> None:
    _LOGGER.warning("%s: has no checksums, as of older versions: not checked for damage", folder)
