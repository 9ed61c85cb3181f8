"""Keeping a workdir in a bucket for one run: buckets have no locks that end with a process."""

import contextlib
import importlib.util
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from harp_jax.workdir.claims import WorkdirError

_LOGGER = logging.getLogger(__name__)

RENEWED_EVERY, PATIENCE = 20.0, 70.0  # seconds; a lease that stays the same that long has ended


def check_reachable(workdir: epath.PathLike) -> None:
    """Checks that a URL is of a bucket, and that the package for it is installed.

    Raises:
        WorkdirError: If not; says what to install.
    """
    url = os.fspath(workdir)
    if "://" not in url:
        return
    if not url.startswith("gs://"):
        raise WorkdirError(f"workdir={url!r}: allowed are local folders and gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise WorkdirError(
            f"workdir={url!r}: gcsfs is not installed; allowed with harp_jax[gcs], or local folders"
        )


@contextlib.contextmanager
def leased(path: epath.Path) -> Iterator[None]:
    """Holds a lease: an object that is created only if there is none, and renewed meanwhile.

    A run that is killed leaves its object. Whoever comes next watches it for `PATIENCE` seconds,
    and takes it over if nobody renews it.

    Args:
        path: Path of the object, `.lock` in the workdir.

    Raises:
        WorkdirError: If another run holds it.
    """
    bucket, name, own = _file_system(path), os.fspath(path), uuid.uuid4().hex
    ended = threading.Event()

    def is_ours() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return own.encode() in bucket.cat_file(name)
        return False

    def content(count: int) -> bytes:
        holder = {"host": socket.gethostname(), "process": os.getpid()}
        return json.dumps({**holder, "lease": own, "renewed": count}).encode()

    def renew() -> None:
        count = 0
        while not ended.wait(RENEWED_EVERY):
            count += 1
            try:
                if not is_ours():
                    _LOGGER.error("%s: another run has taken it over; stop one of them", path)
                    return
                bucket.pipe_file(name, content(count))
            except Exception as error:  # the next time may work
                _LOGGER.warning("%s: cannot be renewed (%s)", path, error)

    _create(bucket, name, content(0))
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if is_ours():
            bucket.rm_file(name)


def _file_system(path: epath.Path) -> Any:
    import fsspec  # comes with gcsfs

    return fsspec.filesystem(os.fspath(path).partition("://")[0])


def _create(bucket: Any, name: str, content: bytes) -> None:
    """Creates the object; takes over one that nobody renews."""
    with contextlib.suppress(FileExistsError):
        bucket.pipe_file(name, content, mode="create")
        return
    _LOGGER.info("%s: is there; looking for %.0f s whether its run is alive", name, PATIENCE)
    before = bucket.cat_file(name)
    time.sleep(PATIENCE)
    try:
        if bucket.cat_file(name) == before:
            bucket.rm_file(name)
        bucket.pipe_file(name, content, mode="create")
    except (FileExistsError, FileNotFoundError):
        raise WorkdirError(
            f"workdir={os.path.dirname(name)!r}: another process is running in it; allowed are a"
            " new folder, or to wait until it ends"
        ) from None
