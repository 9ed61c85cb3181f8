"""The sources of stages: recorded in config.json and compared when a workdir is used again.

'prune.source', 'finetune.source' and 'prune.strategy' may give a path. config.json records for each
stage that has begun what was given and the digest of what was there. The path may change where the
digest stays.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from harp_jax.workdir import files
from harp_jax.workdir.claims import WorkdirError, find_claim, read_claim

_LOGGER = logging.getLogger(__name__)

TRAINED_ON = ("train", "validation")  # splits on which a network depends


class Source(NamedTuple):
    """The network or the rates that a stage starts from.

    Attributes:
        given: The value of the configuration's field; '' for the stage before it in the workdir.
        digest: Digest of the network or the rates; None if it is not known.
    """

    given: str
    digest: str | None


def recorded(earlier: Mapping[str, Any], field: str) -> Source:
    """Returns what a stage of an earlier run started from.

    Args:
        earlier: Content of its config.json.
        field: Such as 'prune.source'.

    Returns:
        The source, without a digest if the run did not record one.
    """
    found = (earlier.get("sources") or {}).get(field)
    if found is not None:
        return Source(found["given"], found.get("digest"))
    section, _, name = field.partition(".")
    return Source(str((earlier["config"].get(section) or {}).get(name) or ""), None)


def check_same(workdir: epath.Path, field: str, before: Source, now: Source) -> None:
    """Checks that a stage that has begun is given the source that it started from.

    Args:
        workdir: Folder of the run.
        field: Such as 'prune.source'.
        before: What the stage started from. Without a digest the same path has to be given, and the
            log says that its content was not compared.
        now: What is given now; its digest is None if there is nothing at its path.

    Raises:
        WorkdirError: If it is another one.
    """
    stage = field.partition(".")[0]
    if before.digest is None and before.given == now.given:
        _LOGGER.info("%s: the workdir's run did not record its digest: not compared", field)
        return
    if before.digest is not None and before.digest == now.digest:
        return
    one, other = (f"{s.given!r} (digest {(s.digest or 'unknown')[:12]})" for s in (before, now))
    raise WorkdirError(
        f"{field}={now.given!r}: {stage} in workdir={str(workdir)!r} started from {one}, not from"
        f" {other}; allowed are a new folder or the same source, which is taken from the folder"
        " where --config is left out"
    )


def record(workdir: epath.Path, found: Mapping[str, Source]) -> None:
    """Adds to config.json what a stage starts from, in the first process only."""
    content = read_claim(workdir) if files.is_first_process() else None
    if content is not None:
        content["sources"] = {**(content.get("sources") or {}), **as_json(found)}
        files.write_json(workdir / files.CONFIG, content)


def as_json(found: Mapping[str, Source]) -> dict[str, Any]:
    """Makes the entry 'sources' of config.json."""
    return {field: source._asdict() for field, source in found.items()}


def trained_on_others(path: epath.Path, data: Mapping[str, Any]) -> str | None:
    """Compares the training and validation images of a source's run with those of this run.

    Args:
        path: A workdir, a folder of a stage in it, or a checkpoint.
        data: 'digests' of this run's data.

    Returns:
        A sentence if they differ or the source's are not recorded; None if they agree.
    """
    before = (find_claim(path) or {}).get("data")
    if not before:
        return (
            f"{path}: has no record of the images it was made with: made with another seed, it may"
            " have seen this run's validation images"
        )
    other = [s for s in TRAINED_ON if before["digests"][s] != data["digests"][s]]
    if not other:
        return None
    return (
        f"{path}: was made with other {' and '.join(other)} images (another seed, version or"
        " number): it may have seen this run's validation images"
    )
