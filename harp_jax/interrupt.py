"""Stopping a run cleanly on Ctrl-C or SIGTERM; a second signal stops it at once."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SHARED_EVERY = 20


class InterruptedRunError(RuntimeError):
    """Raised when the user or the system stopped the run; its state is saved."""


class Interrupt:
    """Context manager that turns SIGINT and SIGTERM (preemption) into a flag that loops check.

    All processes must stop at the same step, so they exchange their flags. The exchange makes every
    process wait, so it happens only at every `SHARED_EVERY`-th step.
    """

    def __init__(self):
        self._received = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        """Installs the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Restores the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._received:
            raise KeyboardInterrupt
        self._received = True

    def requested(self, step: int = 0) -> bool:
        """Returns whether any process was asked to stop.

        Args:
            step: Step of the loop; all processes must call this with the same steps.
        """
        if jax.process_count() == 1:
            return self._received
        if step % SHARED_EVERY:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())
