"""A run's folder: whose it is, and what made it."""

import contextlib
import datetime
import fcntl
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from flax import traverse_util

from harp_jax.config.sections import Config, ConfigError

_LOGGER = logging.getLogger(__name__)

# Fields that may differ when a workdir is used again: they do not change the trained networks.
FREE_FIELDS = (
    "stages",
    "devices",
    "compilation_cache",
    "checkpoint_every_steps",
    "data.directory",
    "data.test_examples",
    "data.workers",
    "evaluate",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def _plain(config: Config) -> dict[str, Any]:
    """The configuration as it reads back from JSON."""
    return json.loads(json.dumps(config.to_dict()))


def earlier_config(config: Config, workdir: epath.Path) -> dict[str, Any] | None:
    """The config.json of an earlier run in this workdir.

    Args:
        config: The configuration of this run.
        workdir: Folder of the run.

    Returns:
        Its content, or None if there is none.

    Raises:
        ConfigError: if it is of another configuration (every differing field is named), or
            cannot be read.
    """
    path = workdir / "config.json"
    try:
        if not path.exists():
            return None
        earlier = json.loads(path.read_text())
        if not isinstance(earlier, dict) or "config" not in earlier:
            raise ValueError("its config.json is not of a run of harp_jax")
    except (OSError, ValueError) as error:
        raise ConfigError(f"workdir={str(workdir)!r}: cannot be read: {error}") from None
    before, now = (
        traverse_util.flatten_dict(c, sep=".") for c in (earlier["config"], _plain(config))
    )
    free = tuple(f"{field}." for field in FREE_FIELDS)
    if config.data.select_on == "test":  # then its size has a say in which network is the best
        free = tuple(field for field in free if field != "data.test_examples.")
    different = [
        f"{field}={before.get(field)!r}, not {now.get(field)!r}"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field) and not f"{field}.".startswith(free)
    ]
    if different:
        raise ConfigError(
            f"workdir={str(workdir)!r}: belongs to another configuration"
            f" ({'; '.join(different)}); allowed are a new folder or the same configuration"
        )
    return earlier


def claim(
    config: Config, workdir: epath.Path, earlier: dict[str, Any] | None, devices: str
) -> dict[str, Any]:
    """Writes config.json.

    Args:
        config: The configuration of this run.
        workdir: Folder of the run; made if it is not there.
        earlier: What `earlier_config` gave.
        devices: Number and kind of the devices, for the record.

    Returns:
        What results.json repeats of it: config, seed, versions, devices.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header = {
        "config": _plain(config),
        "seed": config.seed,
        "versions": _versions(),
        "devices": devices,
    }
    content = {**header, "revision": _revision(), "created": (earlier or {}).get("created", now)}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            unfinished = workdir / "config.tmp"
            unfinished.write_text(json.dumps(content, indent=2) + "\n")
            unfinished.replace(workdir / "config.json")
    except OSError as error:
        raise _cannot_write(workdir, error) from None
    return header


def _cannot_write(workdir: epath.Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"workdir={str(workdir)!r}: cannot be written ({error.strerror}); allowed are folders"
        " that this user may write to"
    )


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Keeps a second run out of a local workdir.

    Args:
        workdir: Folder of the run; made if it is not there.

    Raises:
        ConfigError: if another process holds it, which the system lets go of when that process
            ends; or if the folder cannot be written.
    """
    if "://" in os.fspath(workdir) or jax.process_index() > 0:
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("w")
    except OSError as error:
        raise _cannot_write(workdir, error) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"workdir={str(workdir)!r}: another process is running in it; allowed are a new"
                " folder, or to wait until it ends"
            ) from None
        except OSError:  # a file system without locks
            _LOGGER.warning("%s: cannot be kept from a second run", workdir)
        yield


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("harp_jax", *PACKAGES)}
    return {"python": platform.python_version(), **versions}


def _revision() -> str | None:
    """The git revision of the code, if it runs from a checkout."""
    command = ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
