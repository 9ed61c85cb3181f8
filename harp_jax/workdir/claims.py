"""Reading config.json, with which a run claims its workdir."""

from typing import Any

from etils import epath

from harp_jax.workdir import files, forms, parsing

_ADVICE = (
    "if it is damaged, remove it and repeat the command that began the run, with its --config:"
    " checkpoints have a copy, with which it is compared"
)


class WorkdirError(ValueError):
    """Raised if a folder cannot be used for this run; the message is one line."""


def read_claim(workdir: epath.Path) -> dict[str, Any] | None:
    """Reads a workdir's config.json; returns None if there is none.

    Raises:
        WorkdirError: If it cannot be read or is not a config.json of a run.
    """
    path = workdir / files.CONFIG
    try:
        if not path.exists():
            return None
        earlier = parsing.parse(parsing.read(path))
    except (OSError, ValueError) as error:
        raise WorkdirError(
            f"workdir={str(workdir)!r}: its {files.CONFIG} cannot be read ({error}); {_ADVICE}"
        ) from None
    wrong = forms.problem(earlier, forms.CONFIG)
    if wrong is not None:
        raise WorkdirError(
            f"workdir={str(workdir)!r}: its {files.CONFIG} is not of a run of harp_jax ({wrong})"
        )
    return earlier


def find_claim(path: epath.Path) -> dict[str, Any] | None:
    """Reads the config.json of the run that a network is from.

    Args:
        path: A workdir, a folder of a stage in it, or a checkpoint in that.

    Returns:
        That of the nearest folder, from `path` upwards, that is a workdir; files of the same name
        that cannot be read or are of other programs are passed over. None if there is none.
    """
    for folder in (path, *path.parents[:4]):  # a checkpoint is workdir/STAGE/checkpoints/best/STEP
        try:
            found = read_claim(folder)
        except WorkdirError:
            continue
        if found is not None:
            return found
    return None
