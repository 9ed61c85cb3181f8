"""Measures how long the devices were idle because the next batch was not ready."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


class Waits:
    """The share of an epoch's time that was spent waiting for batches.

    A wait counts if the devices have no work left at its end. While they are still busy with
    earlier steps, a wait of the loop costs nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Starts the epoch.

        Args:
            clock: Monotonic clock, in seconds.
        """
        self._clock = clock
        self._started = clock()
        self._waited = 0.0

    def over(self, batches: Iterable[Batch], idle: Callable[[], bool]) -> Iterator[Batch]:
        """Yields the batches, and measures the wait for each.

        Args:
            batches: The batches of the epoch.
            idle: Returns whether the devices have finished all their work.
        """
        source = iter(batches)
        while True:
            asked = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            if idle():
                self._waited += self._clock() - asked
            yield batch

    def share(self) -> float:
        """Returns the share of the seconds since the epoch started that was lost, in [0, 1]."""
        seconds = self._clock() - self._started
        return self._waited / seconds if seconds > 0 else 0.0
