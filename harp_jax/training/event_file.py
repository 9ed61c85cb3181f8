"""TensorBoard's event file of a stage."""

import logging
import socket
import struct
import time
from collections.abc import Iterable
from typing import Any

from etils import epath
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from harp_jax.workdir.files import WriteError, append

_EVENTS: Any = event_pb2  # its classes are made at run time
_SUMMARIES: Any = summary_pb2

_LOGGER = logging.getLogger(__name__)


class EventFile:
    """A new event file; TensorBoard shows all files of a folder together.

    An event that cannot be written is not an error, since metrics.jsonl has the same numbers. The
    log says so once, and no more events follow.
    """

    def __init__(self, folder: epath.PathLike, resume_at: int):
        """Begins the file.

        Args:
            folder: Folder of the file; it is created if needed.
            resume_at: First step that will be added. TensorBoard drops what older files have from
                it on.
        """
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._path = epath.Path(folder) / name
        self._content = b""
        self._works = True
        now, log = time.time(), _EVENTS.SessionLog
        start = log(status=log.SessionStatus.Value("START"))
        self._append(
            _EVENTS.Event(wall_time=now, file_version="brain.Event:2"),
            _EVENTS.Event(wall_time=now, step=resume_at, session_log=start),
        )

    def add(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Adds values.

        Args:
            step: Where TensorBoard draws them.
            scalars: Tags and values.
        """
        values = [_SUMMARIES.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars]
        self._append(
            _EVENTS.Event(
                wall_time=time.time(), step=step, summary=_SUMMARIES.Summary(value=values)
            )
        )

    def _append(self, *events: Any) -> None:
        if not self._works:
            return
        new = b"".join(_record(event.SerializeToString()) for event in events)
        try:
            append(self._path, self._content, new)
        except WriteError as error:
            self._works = False
            _LOGGER.warning("%s; TensorBoard will not show the epochs from here on", error)
        self._content += new


def _record(data: bytes) -> bytes:
    """Frames an event as a record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(each)) for each in (length, data)]
    return length + checksums[0] + data + checksums[1]
