"""Cells side by side: what ends them, where they compute, and who shares them."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import workers
from experiments.workers import Clock, StoppedError, claimed, execute, side_by_side

# Says that it is asked to stop, and ends as a run does.
PATIENT = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).write_text("begun")
time.sleep(600)
"""


def test_a_command_runs_to_its_end_or_fails():
    execute([sys.executable, "-c", ""], Clock())
    execute([sys.executable, "-c", ""], Clock(1.0))
    with pytest.raises(subprocess.CalledProcessError):
        execute([sys.executable, "-c", "raise SystemExit(3)"], Clock())


def test_a_command_is_asked_to_stop_when_the_time_is_over(tmp_path):
    clock = Clock(3 / 3600)
    with pytest.raises(StoppedError):
        execute([sys.executable, "-c", PATIENT, str(tmp_path / "state")], clock)
    assert (tmp_path / "state").read_text() == "saved"
    with pytest.raises(StoppedError):
        execute([sys.executable, "-c", PATIENT, str(tmp_path / "second")], clock)
    assert not (tmp_path / "second").exists()


def test_after_ctrl_c_the_command_may_save(tmp_path):
    """A terminal sends the signal to both; without waiting, the command would be killed."""
    state = tmp_path / "state"
    code = (  # a process that was begun in the background ignores the signal
        "import signal, sys; from experiments import workers; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "workers.execute(sys.argv[1:], workers.Clock())"
    )
    command = [sys.executable, "-c", code, sys.executable, "-c"]
    slow = PATIENT.replace("def stop(*_):", "def stop(*_):\n    time.sleep(1)")
    slow = slow.replace("SIGTERM", "SIGINT")
    process = subprocess.Popen(
        [*command, slow, str(state)], process_group=0, stderr=subprocess.PIPE
    )
    while not (state.exists() and state.read_text()):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate()
    assert b"KeyboardInterrupt" in error
    assert state.read_text() == "saved"


@pytest.mark.slow
def test_a_command_that_does_not_stop_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_TO_SAVE", 0.2)
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    before = time.monotonic()
    with pytest.raises(StoppedError):
        execute([sys.executable, "-c", deaf], Clock(3 / 3600))
    assert time.monotonic() - before < 300


def test_threads_share_what_is_to_do_each_on_a_core(tmp_path):
    before, done, cores = os.sched_getaffinity(0), [], []

    def work():
        for name in "abcdef":
            with claimed(tmp_path / name, wait=False) as is_ours:
                if is_ours and name not in done:
                    found = subprocess.check_output(
                        [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
                    )
                    cores.append(int(found))
                    done.append(name)

    side_by_side(work, 2, Clock())
    assert sorted(done) == list("abcdef")
    assert set(cores) == {1}
    assert os.sched_getaffinity(0) == before


def test_the_first_failure_ends_the_others():
    clock, turns = Clock(), iter([True, False])

    def work():
        if next(turns):
            raise ValueError("broken")
        while True:
            clock.check()
            time.sleep(0.01)

    with pytest.raises(ValueError, match="broken"):
        side_by_side(work, 2, clock)


def test_a_lock_that_is_taken_is_not_ours(tmp_path):
    with claimed(tmp_path / "a", wait=False) as one, claimed(tmp_path / "a", wait=False) as two:
        assert (one, two) == (True, False)
    with claimed(tmp_path / "a", wait=True) as again:
        assert again


def test_waiting_for_a_lock_ends_with_the_time(tmp_path):
    path = tmp_path / "a"
    with claimed(path, wait=False), pytest.raises(StoppedError):
        claimed(path, wait=True, clock=Clock(1e-9)).__enter__()
