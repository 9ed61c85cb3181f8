"""How long the devices stood still because the next batch was not there."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


class Waits:
    """The share of an epoch's time that was lost to waiting for batches.

    A wait counts if the devices have nothing left to do by its end. While they are still busy with
    earlier steps, it costs nothing that the loop, ahead of them, waits.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        """Starts the epoch.

        Args:
            clock: Seconds that never run backwards.
        """
        self._clock = clock
        self._started = clock()
        self._waited = 0.0

    def over(self, batches: Iterable[Batch], idle: Callable[[], bool]) -> Iterator[Batch]:
        """The batches, each waited for.

        Args:
            batches: Where they come from.
            idle: Whether the devices have done all that they were given.
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
        """Seconds lost over seconds since the epoch started, in [0, 1]."""
        seconds = self._clock() - self._started
        return self._waited / seconds if seconds > 0 else 0.0
