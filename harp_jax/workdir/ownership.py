"""Claiming a workdir for a run, and checking that configuration and data belong to it."""

import contextlib
import datetime
import fcntl
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from harp_jax.workdir import files, forms, identity, lease, provenance
from harp_jax.workdir.claims import WorkdirError, read_claim
from harp_jax.workdir.sources import TRAINED_ON, Source, as_json

_LOGGER = logging.getLogger(__name__)


def plain(config: Any) -> dict[str, Any]:
    """Converts a configuration to the plain values that JSON would give back."""
    return json.loads(files.json_text(config.to_dict()))


def earlier_run(
    workdir: epath.Path,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    otherwise: Callable[[], Any] = lambda: None,
) -> dict[str, Any] | None:
    """Reads the config.json of an earlier run in this workdir.

    Args:
        workdir: Folder of the run.
        config: Configuration of this run, from `plain`.
        defaults: Default configuration of this version, from `plain`.
        otherwise: Returns what the run's checkpoints recorded of a config.json that is gone, or
            None.

    Returns:
        Its content; None if there is no earlier run.

    Raises:
        WorkdirError: If it cannot be read or has another configuration; names all fields that
            differ.
    """
    earlier = read_claim(workdir)
    if earlier is None:
        earlier = otherwise()
        if earlier is None or forms.problem(earlier, forms.CONFIG) is not None:
            return None
        _LOGGER.warning(
            "workdir=%r: has no %s: compared with the record in its checkpoints",
            str(workdir),
            files.CONFIG,
        )
    found = _compared(earlier, config, defaults)
    if found.different:
        raise WorkdirError(
            f"workdir={str(workdir)!r}: belongs to another configuration"
            f" ({'; '.join(found.different)}); allowed are a new folder or the same configuration,"
            " which is taken from the folder where --config is left out"
        )
    if found.new:
        _LOGGER.info("the workdir's run did not know %s: at the defaults", ", ".join(found.new))
    if found.gone:
        _LOGGER.info("this version does not know the workdir's %s", ", ".join(found.gone))
    return earlier


def _compared(
    earlier: Mapping[str, Any], config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> identity.Comparison:
    free = identity.FREE_FIELDS
    if config["data"]["select_on"] == "test":
        # Then the size of the test split affects the choice of the best epoch.
        free = tuple(field for field in free if field != "data.test_examples")
    before, now = identity.flat(earlier["config"]), identity.flat(config)
    return identity.compare(before, now, identity.flat(defaults), earlier.get("format", 0), free)


def check_checkpoint(
    folder: epath.Path,
    run: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Checks that a checkpoint in a workdir was saved by the workdir's run.

    Args:
        folder: The checkpoint.
        run: The config.json that was saved with it; None if there was none.
        config: Configuration of this run, from `plain`.
        defaults: Default configuration of this version, from `plain`.
        data: 'digests' of this run's data.

    Raises:
        WorkdirError: If it is of a run with another configuration or other images.
    """
    if run is None or forms.problem(run, forms.CONFIG) is not None:
        return
    different = _compared(run, config, defaults).different
    before = (run.get("data") or {}).get("digests") or data["digests"]
    different += [
        f"other {split} images" for split in TRAINED_ON if before[split] != data["digests"][split]
    ]
    if different:
        raise foreign(folder, f"is of another run ({'; '.join(different)})")


def foreign(folder: epath.Path, why: str) -> WorkdirError:
    """Returns the error of a checkpoint that was not saved where it is."""
    return WorkdirError(f"{folder}: {why}; remove this folder, and the same command makes it again")


def check_data(workdir: epath.Path, earlier: Mapping[str, Any] | None, data: Any) -> None:
    """Checks that training and validation images are those of the workdir's networks.

    Args:
        workdir: Folder of the run.
        earlier: Content of its config.json; None if there is none. If it was written by a version
            that did not record the data, nothing is checked, and the log says so.
        data: 'name', 'version' and 'digests' of this run's data.

    Raises:
        WorkdirError: If the data differ; names both.
    """
    if earlier is None:
        return
    before = earlier.get("data")
    if before is None:
        _LOGGER.info("the workdir's run did not record its data: not compared, and still unknown")
        return
    for split in TRAINED_ON:
        one, other = before["digests"][split], data["digests"][split]
        if one != other:
            raise WorkdirError(
                f"workdir={str(workdir)!r}: its {split} images are of"
                f" {before['name']} {before['version']} ({one[:12]}), not of {data['name']}"
                f" {data['version']} ({other[:12]}); allowed are the same data or a new folder"
            )


def claim(
    config: Any,
    workdir: epath.Path,
    earlier: Mapping[str, Any] | None,
    devices: str,
    data: Mapping[str, Any],
    begun: Mapping[str, Mapping[str, Source]],
) -> dict[str, Any]:
    """Writes config.json.

    Args:
        config: Configuration of this run.
        workdir: Folder of the run; created if needed.
        earlier: Result of `earlier_run`.
        devices: Number and kind of the devices, to be recorded.
        data: 'name', 'version' and 'digests' of the data. Those of the images that networks depend
            on are recorded, unless a stage was begun by a run that did not record them.
        begun: The stages that have begun, with what they started from, by field.

    Returns:
        The entries that results.json repeats: config, seed, versions, devices.

    Raises:
        WorkdirError: If the folder cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    header = {
        "config": plain(config),
        "seed": config.seed,
        "versions": provenance.versions(),
        "devices": devices,
    }
    code = {"versions": header["versions"], "revision": provenance.revision()}
    sources = {field: source for found in begun.values() for field, source in found.items()}
    content = {
        **header,
        "format": identity.FORMAT,
        "data": _of_networks(data, earlier, list(begun)),
        "sources": as_json(sources),
        "revision": code["revision"],
        "created": (earlier or {}).get("created", now),
        **provenance.continued(earlier, code, list(begun), now),
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(workdir / files.CONFIG, content)
    except OSError as error:
        raise _cannot_write(workdir, error) from None
    return header


def _of_networks(
    data: Mapping[str, Any], earlier: Mapping[str, Any] | None, begun: Sequence[str]
) -> dict[str, Any] | None:
    """Returns the data that the networks depend on; None if that was not recorded."""
    if begun and (earlier or {}).get("data") is None:
        return None
    digests = {split: data["digests"][split] for split in TRAINED_ON}
    return {**data, "digests": digests}


def _cannot_write(workdir: epath.Path, error: OSError) -> WorkdirError:
    reason = getattr(error, "cause", None) or error.strerror or str(error)
    if isinstance(error, FileExistsError):
        reason = "it is a file"
    return WorkdirError(
        f"workdir={str(workdir)!r}: cannot be written ({reason}); allowed are folders"
        " that this user may write to, with room"
    )


@contextlib.contextmanager
def held(workdir: epath.Path) -> Iterator[None]:
    """Locks a workdir, so that no second run uses it; in a bucket by a lease.

    Args:
        workdir: Folder of the run; created if needed.

    Raises:
        WorkdirError: If another process holds the lock, or the folder cannot be written. The
            operating system releases the lock when its process ends.
    """
    if jax.process_index() > 0:
        yield
        return
    if files.is_remote(workdir):
        with lease.leased(workdir / files.LOCK):
            yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / files.LOCK).open("w")
    except OSError as error:
        raise _cannot_write(workdir, error) from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirError(
                f"workdir={str(workdir)!r}: another process is running in it; allowed are a new"
                " folder, or to wait until it ends"
            ) from None
        except OSError:  # the file system has no locks
            _LOGGER.warning("%s: cannot be kept from a second run", workdir)
        yield
