"""How the loop tells that its input is too slow, on a clock of the test's own."""

import pytest

from harp_jax.training.waits import Waits


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def share(*, batch_seconds, step_seconds, idle=True, batches=4):
    """Of an epoch in which each batch and each step take so long."""
    clock = Clock()

    def source():
        for number in range(batches):
            clock.now += batch_seconds
            yield number

    waits = Waits(clock)
    used = []
    for batch in waits.over(source(), lambda: idle):
        clock.now += step_seconds
        used.append(batch)
    assert used == list(range(batches))
    return waits.share()


def test_a_slow_input_raises_the_share():
    assert share(batch_seconds=0.0, step_seconds=1.0) == 0.0
    assert share(batch_seconds=1.0, step_seconds=3.0) == pytest.approx(0.25)
    assert share(batch_seconds=3.0, step_seconds=1.0) == pytest.approx(0.75)
    assert share(batch_seconds=1.0, step_seconds=0.0) == pytest.approx(1.0)


def test_waits_while_the_devices_are_busy_cost_nothing():
    assert share(batch_seconds=3.0, step_seconds=1.0, idle=False) == 0.0


def test_an_epoch_that_has_not_begun():
    assert Waits(Clock()).share() == 0.0


def test_an_error_of_the_input_is_passed_on():
    def source():
        yield 1
        raise ValueError("broken")

    batches = Waits(Clock()).over(source(), lambda: True)
    assert next(batches) == 1
    with pytest.raises(ValueError, match="broken"):
        next(batches)
