"""Writes an imported network as a workdir that runs start from."""

from typing import Any

from etils import epath

from harp_jax import checkpoint
from harp_jax.export.errors import FileError
from harp_jax.interop.reading import Imported, read
from harp_jax.workdir import files, write_json

REPORT = "import.json"  # in the workdir


def import_checkpoint(
    path: epath.PathLike, model: str, workdir: epath.PathLike, **settings: Any
) -> Imported:
    """Reads a network from a checkpoint, and writes it as the stage of a new workdir.

    A dense network becomes the stage 'pretrain', from which `prune.source` starts; a pruned one
    'prune', from which `finetune.source` starts. `harp_jax.load` loads both. `import.json` beside
    it says what was taken and what was left out.

    Args:
        path: See `read`.
        model: See `read`.
        workdir: Folder to write; new or empty.
        **settings: Further arguments of `read`.

    Returns:
        The network.

    Raises:
        FileError: See `read`; also if the folder is in use or cannot be written. Nothing is written
            then.
    """
    folder = checkpoint.absolute(workdir)
    _check_free(folder)
    found = read(path, model, **settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / REPORT, {**found.metadata, "report": found.report.as_json()})
        checkpoint.save_result(folder / found.metadata["stage"], found.variables, found.metadata)
    except OSError as error:
        raise FileError(f"workdir={str(folder)!r}: cannot be written ({error})") from error
    return found


def _check_free(folder: epath.Path) -> None:
    """Refuses a folder with anything but what an import that was interrupted left in it."""
    try:
        inside = sorted(each.name for each in folder.iterdir()) if folder.exists() else []
        complete = [each for each in files.STAGES if checkpoint.is_complete(folder / each)]
    except OSError as error:
        raise FileError(f"workdir={str(folder)!r}: cannot be read ({error})") from error
    left = {REPORT, f"{REPORT}.tmp", *files.STAGES}
    if complete or not left.issuperset(inside):
        raise FileError(
            f"workdir={str(folder)!r}: has {', '.join(inside[:3])} in it; allowed are new or empty"
            " folders"
        )
