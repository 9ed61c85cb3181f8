"""ResNet-50 on a small ImageNet that is streamed: the paper's configuration, killed and resumed.

Images are 224 pixels wide and batches as small as two CPU cores bear; about ten minutes.
"""

import shutil
import signal
import time

import fake_imagenet
import pytest
import runs

pytestmark = [pytest.mark.slow, pytest.mark.hours]

BATCH, BATCHES = 8, 2
FIELDS = {
    "devices": 1,
    "batch_size": BATCH,
    "data.train_examples": BATCH * BATCHES,
    "data.validation_examples": BATCH,
    "data.test_examples": BATCH,
    "data.workers": 1,
    "evaluate.batch_size": BATCH,
    "evaluate.run": "()",
    "checkpoint_every_steps": 1,
    "stages": "('pretrain','prune','finetune','evaluate')",
    **{f"{stage}.epochs": 1 for stage in runs.STAGES},
}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    fake_imagenet.write(folder, train=4 * BATCH, validation=BATCH)
    fields = {**FIELDS, "data.directory": folder, "compilation_cache": folder / "programs"}
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    config = "configs/paper.py:imagenet-resnet50-free-90"
    return lambda workdir: runs.command(workdir, *settings, config=config)


def kill_after_first_batch(command, stage_directory):
    """Kills a run (SIGKILL) once the state after the first batch of a stage is on disk."""
    process = runs.start(command)
    while process.poll() is None and not (stage_directory / "checkpoints/last/1").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert runs.end(process).returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_with_the_same_batches(command, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = runs.call(command(whole))
    assert done.returncode == 0, done.stderr
    killed.mkdir()
    shutil.copytree(whole / "pretrain", killed / "pretrain")
    for stage in ("prune", "finetune"):
        kill_after_first_batch(command(killed), killed / stage)
        assert not (killed / stage / "result").exists()
    done = runs.call(command(killed))
    assert done.returncode == 0, done.stderr
    runs.assert_identical(whole, killed)
    rows = {row["stage"]: row for row in runs.results(whole)["rows"]}
    assert rows["finetune"]["parameters"] <= 0.1 * rows["finetune"]["total"]
    assert [row["step"] for row in runs.metrics(whole, "finetune")] == [BATCHES]
