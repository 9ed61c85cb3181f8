"""Whole runs on photos that are streamed from disk."""

import os
import signal
import subprocess
import time

import fake_imagenet
import pytest
import runs

from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.run import experiment

STEPS, EPOCHS, STOP = 6, 2, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    fake_imagenet.write(folder, train=8 * STEPS + 16, validation=16)
    return str(folder)


def settings(folder, **fields):
    return {
        "data.name": "imagenet2012",
        "data.directory": folder,
        "data.image_size": 8,
        "data.flip": True,
        "data.validation_examples": 16,
        "batch_size": 8,
        "evaluate.batch_size": 16,
        "evaluate.run": ("pgd10",),  # as in validation: compiled once
        "loss": "natural",  # compiles fast
        "pretrain.epochs": EPOCHS,
        "stages": ("pretrain", "evaluate"),
        **fields,
    }


@pytest.mark.slow
def test_a_run_stopped_in_mid_epoch_goes_on_with_the_same_bits(folder, tmp_path, monkeypatch):
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    experiment.run(runs.digits(**settings(folder)), alone)
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step=0: step == STOP)
        with pytest.raises(InterruptedRunError, match=f"in epoch 1 after step {STOP}"):
            experiment.run(runs.digits(**settings(folder)), stopped)
    # With worker processes, for they change nothing.
    experiment.run(runs.digits(**settings(folder, **{"data.workers": 1})), stopped)
    runs.assert_identical(alone, stopped, stages=("pretrain",))
    rows = runs.metrics(alone, "pretrain")
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS]
    assert runs.results(alone)["rows"][0]["images"] == 16


def ends(group):
    """Whether all processes of a group are gone, or go within seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def text(value):
    return str(value).replace(" ", "")


@pytest.mark.slow
def test_ctrl_c_reaches_the_workers_too_and_stops_the_run_cleanly(folder, tmp_path):
    """As a terminal sends it: to all processes of the command, while the workers start."""
    fields = settings(folder, **{"data.workers": 2, "pretrain.epochs": 30})
    options = [f"--config.{field}={text(value)}" for field, value in fields.items()]
    arguments = runs.command(tmp_path / "run", *options, runs.cache_option(tmp_path))
    for epoch in (1, 3):
        process = subprocess.Popen(
            arguments,
            cwd=runs.ROOT,
            env=runs.environment(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            if f"pretrain epoch {epoch}:" in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        said = process.stderr.read()
        assert process.wait(timeout=60) == 130, said
        assert said.splitlines()[-1].startswith("interrupted: pretrain: stopped in epoch"), said
        assert "Traceback" not in said
        assert ends(process.pid)
    assert len(runs.metrics(tmp_path / "run", "pretrain")) >= 4
