"""Returns the configuration of an existing run: its config.json over the defaults.

The command line uses it where no --config is given:

python -m harp_jax.main --workdir=runs/mnist --config.stages="('evaluate','report')"
"""

from typing import Any

from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict

from harp_jax.config.defaults import default
from harp_jax.config.rules import OPEN
from harp_jax.config.sections import ConfigError
from harp_jax.config.validation import check_fields
from harp_jax.workdir import identity
from harp_jax.workdir.claims import WorkdirError, read_claim
from harp_jax.workdir.files import CONFIG
from harp_jax.workdir.lease import check_reachable


def get_config(workdir: str) -> ConfigDict:
    """Returns the recorded configuration; fields that it lacks have their defaults.

    Where a default has changed since, that is the one of the version that made the run. The fields
    that its recipe gave are among the recorded ones, so the recipe itself is `paper`: the one of
    that name may give more by now.

    Args:
        workdir: Folder of a run.

    Returns:
        The configuration. Recorded fields that this version does not know are left out; the run
        says so when it compares the two.

    Raises:
        WorkdirError: If the folder has no config.json, or one that cannot be read.
    """
    check_reachable(workdir)
    earlier = read_claim(epath.Path(workdir).expanduser())
    if earlier is None:
        raise WorkdirError(
            f"workdir={workdir!r}: has no config.json; allowed are folders of runs (a new run needs"
            " --config)"
        )
    config = default()
    former = identity.former_defaults(earlier.get("format") or 0)
    try:
        _take(config, traverse_util.unflatten_dict(former, sep="."))
        _take(config, earlier["config"])
        config.prune.recipe = "paper"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise WorkdirError(
            f"workdir={workdir!r}: its {CONFIG} has a value of another type ({text})"
        ) from None
    try:
        check_fields(config)
    except ConfigError as error:
        raise WorkdirError(f"workdir={workdir!r}: its {CONFIG} has {error}") from None
    return config


def _take(config: Any, recorded: dict[str, Any], section: str = "") -> None:
    """Sets the recorded fields; sections of `OPEN`, such as an attack, are taken as a whole."""
    for field, value in recorded.items():
        is_section = field in config and isinstance(config[field], ConfigDict)
        if is_section and section not in OPEN:
            if not isinstance(value, dict):
                raise TypeError(f"{field}={value!r}: allowed are objects")
            _take(config[field], value, f"{section}.{field}".lstrip("."))
        elif field in config or not config.is_locked:
            with config.ignore_type():  # a wrong type is named later, with what is allowed
                config[field] = _plain(value)


def _plain(value: Any) -> Any:
    """Converts JSON's lists to tuples and its objects to sections."""
    if isinstance(value, list):
        return tuple(map(_plain, value))
    return ConfigDict(value) if isinstance(value, dict) else value
