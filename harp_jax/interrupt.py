"""Stopping a run cleanly: the first Ctrl-C or SIGTERM asks, the second one insists."""

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils

SHARED_EVERY = 20


class InterruptedRunError(RuntimeError):
    """The user or the system asked the run to stop; its state is saved."""


class Interrupt:
    """While open, turns SIGINT and SIGTERM (preemption) into a request that loops ask for.

    With several processes they must agree on the step at which they stop, so they ask each other;
    since that makes all of them wait, they do it at every `SHARED_EVERY`-th step only.
    """

    def __init__(self):
        self._received = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        """Installs the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._received:
            raise KeyboardInterrupt
        self._received = True

    def requested(self, step: int = 0) -> bool:
        """Whether a stop was asked for, of any process.

        Args:
            step: The loop's step; every process must call this with the same steps.
        """
        if jax.process_count() == 1:
            return self._received
        if step % SHARED_EVERY:
            return False
        return bool(multihost_utils.process_allgather(np.array(self._received)).any())
