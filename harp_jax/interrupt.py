"""Stopping a run cleanly on Ctrl-C or SIGTERM; a second signal stops it at once.

Clusters, and clouds that take a machine back (preemption), send SIGTERM.
"""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SHARED_EVERY = 20


class InterruptedRunError(RuntimeError):
    """Raised when the user or the system stopped the run; its state is saved.

    Attributes:
        exit_code: 128 plus the number of the signal: 130 for Ctrl-C, 143 for SIGTERM.
    """

    exit_code = 128 + signal.SIGINT


class Interrupt:
    """Context manager that turns SIGINT and SIGTERM (preemption) into a flag that loops check.

    All processes must stop at the same step, so they exchange their flags. The exchange makes every
    process wait, so it happens only at every `SHARED_EVERY`-th step. An InterruptedRunError that
    leaves the context gets the exit code of the signal, in all processes.
    """

    def __init__(self):
        self._received = 0  # number of the signal that this process got; 0 for none
        self._anywhere = 0  # the same of all processes, as of their last exchange
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        """Installs the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Restores the previous signal handlers."""
        del kind, trace
        number = max(self._anywhere, self._received)
        if isinstance(error, InterruptedRunError) and number:
            error.exit_code = 128 + number
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._received:
            raise KeyboardInterrupt(number)
        self._received = number

    def requested(self, step: int = 0) -> bool:
        """Returns whether any process was asked to stop.

        Args:
            step: Step of the loop; all processes must call this with the same steps.
        """
        if jax.process_count() == 1:
            return self._received > 0
        if step % SHARED_EVERY:
            return False
        numbers = multihost_utils.process_allgather(np.array(self._received, np.int32))
        self._anywhere = int(np.max(numbers))
        return self._anywhere > 0
