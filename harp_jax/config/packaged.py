"""Finds the files of configurations: a user's own, and those of this package by their names.

The package's are the folder `configs/` of a checkout; an installed package has a copy of it.
"""

import importlib.util
import pathlib
import re

from harp_jax.config.sections import Config, ConfigError
from harp_jax.names import hint

_PACKAGE = pathlib.Path(__file__).parents[1]
_NAMED = re.compile(r"(?:configs/)?(\w+)(?:\.py)?")
_ALLOWED = "allowed are Python files with get_config()"


def load(file: str) -> Config:
    """Returns the configuration of a file.

    Args:
        file: What `--config` takes: a file's path, or the name of one of the package's ('digits',
            'configs/digits.py'); ':' and an argument of its get_config() may follow.

    Returns:
        The configuration.

    Raises:
        ConfigError: If there is no such file, or no get_config() in it.
    """
    path, colon, argument = find(file).partition(":")
    spec = importlib.util.spec_from_file_location("configuration", path)
    if not pathlib.Path(path).is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"config={path!r}: is not there; {allowed(path)}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config={path!r}: has no get_config(); {_ALLOWED}")
    return module.get_config(*[argument][: len(colon)])


def find(file: str) -> str:
    """Returns the path of a configuration's file, with what follows its colon.

    A file that is there is taken first. Otherwise `NAME`, `NAME.py` and `configs/NAME.py` are the
    package's file of that name. Anything else is returned as it is.
    """
    path, colon, argument = file.partition(":")
    named = _NAMED.fullmatch(path)
    if named is None or pathlib.Path(path).is_file() or named[1] not in names():
        return file
    return f"{_folder() / named[1]}.py{colon}{argument}"


def names() -> list[str]:
    """Returns the names of the package's configurations, sorted."""
    return sorted(path.stem for path in _folder().glob("*.py"))


def allowed(file: str) -> str:
    """Says in a line which files can be given instead of one, and which name is near."""
    near = hint(pathlib.Path(file).stem, names()).strip()
    said = f"{_ALLOWED}, and of this package {', '.join(names())}"
    return f"{said}; {near}" if near else said


def _folder() -> pathlib.Path:
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"
