"""The items of a checkpoint as Orbax saves them, and saving the result of a stage."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from harp_jax.checkpoint import record
from harp_jax.types import Variables
from harp_jax.workdir.files import RESULT, writing


def arguments(
    trees: Mapping[str, Any], metadata: Any, run: Mapping[str, Any] | None
) -> ocp.args.Composite:
    """Returns what Orbax needs to save a checkpoint.

    Args:
        trees: Trees of arrays on the host, by item.
        metadata: JSON-like description.
        run: Content of the run's config.json; None if there is none.
    """
    arrays = {name: jax.tree.map(np.asarray, tree) for name, tree in trees.items()}
    made = record.make({**arrays, record.METADATA: metadata}, run)
    items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
    items |= {record.METADATA: ocp.args.JsonSave(metadata), record.RECORD: ocp.args.JsonSave(made)}
    return ocp.args.Composite(**items)


def save_result(
    stage_directory: epath.PathLike,
    variables: Variables,
    metadata: Any,
    run: Mapping[str, Any] | None = None,
) -> None:
    """Writes the result of a stage, which marks the stage as complete.

    Args:
        stage_directory: Folder of the stage in the workdir.
        variables: All collections, as NumPy arrays.
        metadata: JSON-like description.
        run: Content of the run's config.json; None if there is none.

    Raises:
        WriteError: If it cannot be written; the stage is not complete then.
    """
    items = arguments({record.VARIABLES: dict(variables)}, metadata, run)
    path = epath.Path(stage_directory) / RESULT
    with writing(path), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=items, force=True)
