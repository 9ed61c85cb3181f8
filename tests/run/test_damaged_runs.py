"""A run in a workdir whose result or config.json is damaged or gone."""

import json
import os
import shutil
import signal

import pytest
import runs

from harp_jax import checkpoint
from harp_jax.checkpoint import record
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.run import experiment

OTHER = {**runs.FIELDS, "seed": 1}


@pytest.fixture
def workdir(tmp_path_factory, tmp_path):
    """A copy of a finished run."""
    finished = runs.finished(tmp_path_factory.getbasetemp())
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("item", ["metadata", "record"])
def test_a_damaged_result_is_one_line_that_says_how_to_go_on(item, workdir):
    flip(workdir / "finetune" / "result" / item / "metadata")
    said = runs.refusal(runs.digits(**runs.FIELDS, stages=("evaluate",)), workdir)
    assert said.startswith(f"{workdir}/finetune/result: is damaged (")
    assert said.endswith(
        "; remove this folder, and the command of its run makes it again from the stage's"
        " checkpoints"
    )


def test_a_result_that_was_removed_is_made_again_with_the_same_bits(workdir, tmp_path_factory):
    for stage in ("pretrain", "prune"):
        shutil.rmtree(workdir / stage / "result")
    experiment.run(runs.digits(**runs.FIELDS, stages=("pretrain", "prune")), workdir)
    finished = runs.finished(tmp_path_factory.getbasetemp())
    assert set(runs.differences(finished, workdir).values()) == {0.0}


def test_without_config_json_the_checkpoints_say_whose_run_it_is(workdir, caplog):
    before = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").unlink()
    said = runs.refusal(runs.digits(**OTHER), workdir)
    assert "belongs to another configuration (seed=0, not 1)" in said
    assert not (workdir / "config.json").exists()
    caplog.clear()
    experiment.run(runs.digits(**runs.FIELDS, stages=("report",)), workdir)
    (line,) = (text for text in caplog.messages if "has no config.json" in text)
    assert line.startswith(f"workdir={str(workdir)!r}: ")
    after = json.loads((workdir / "config.json").read_text())
    assert after["config"].pop("stages") == ["report"]
    del before["config"]["stages"]
    assert after == before


def test_without_config_json_and_record_a_trained_run_is_refused(workdir):
    (workdir / "config.json").unlink()
    for each in workdir.rglob("record"):
        shutil.rmtree(each)
    said = runs.refusal(runs.digits(**runs.FIELDS), workdir)
    assert said.startswith(f"workdir={str(workdir)!r}: has pretrain/checkpoints but no config.json")
    assert said.endswith("allowed are a new folder, or to put that file back")


def test_a_damaged_config_json_is_refused_and_may_be_removed(workdir):
    path = workdir / "config.json"
    path.write_bytes(path.read_bytes()[:-20])
    said = runs.refusal(runs.digits(**runs.FIELDS), workdir)
    assert "its config.json cannot be read (" in said
    assert "remove it and repeat the command that began the run, with its --config" in said


def test_checkpoints_record_the_run(workdir):
    found = checkpoint.recorded_run(workdir)
    assert found is not None
    assert found["config"]["prune"]["epochs"] == runs.FIELDS["prune.epochs"]
    assert "prune.source" in found["sources"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_that_of_the_signal(number, code, monkeypatch, tmp_path):
    def run(*_):
        with Interrupt() as interrupt:
            assert not interrupt.requested()
            os.kill(os.getpid(), number)
            assert interrupt.requested()
            raise InterruptedRunError("prune: stopped")

    monkeypatch.setattr(experiment, "run", run)
    done = runs.here(runs.command(tmp_path, "--config.compilation_cache=''"))
    assert done.returncode == code
    assert done.stderr == "interrupted: prune: stopped\n"


def resave(folder, change):
    """Gives a checkpoint the record of one that another run saved."""
    file = folder / "record" / "metadata"
    saved = json.loads(file.read_text())
    change(saved["run"])
    saved["checksums"]["run"] = record.make({}, saved["run"])["checksums"]["run"]
    file.write_text(json.dumps(saved))


@pytest.mark.parametrize("place", ["result", "checkpoints/last", "checkpoints/best"])
def test_a_checkpoint_of_another_run_is_refused(place, workdir):
    folder = workdir / "finetune" / place
    folder = folder if place == "result" else max(folder.glob("[0-9]*"), key=lambda x: int(x.name))
    resave(folder, lambda run: run["config"].update(seed=1, devices=7))
    said = runs.refusal(runs.digits(**runs.FIELDS), workdir)
    assert said == (
        f"{folder}: is of another run (seed=1, not 0); remove this folder, and the same command"
        " makes it again"
    )
    resave(folder, lambda run: run["config"].update(seed=0))
    resave(folder, lambda run: run["data"]["digests"].update(train="other"))
    assert "is of another run (other train images)" in runs.refusal(
        runs.digits(**runs.FIELDS), workdir
    )


def test_a_checkpoint_of_another_stage_is_refused_and_made_again(workdir, tmp_path_factory):
    result = workdir / "finetune" / "result"
    shutil.rmtree(result)
    shutil.copytree(workdir / "prune" / "result", result)
    said = runs.refusal(runs.digits(**runs.FIELDS), workdir)
    assert said.startswith(f"{result}: is of stage 'prune'; remove this folder, and ")
    shutil.rmtree(result)
    experiment.run(runs.digits(**runs.FIELDS, stages=runs.STAGES), workdir)
    finished = runs.finished(tmp_path_factory.getbasetemp())
    assert set(runs.differences(finished, workdir).values()) == {0.0}


def test_a_network_without_checkpoints_beside_it_may_be_of_another_run(workdir):
    resave(workdir / "pretrain" / "result", lambda run: run["config"].update(seed=1))
    shutil.rmtree(workdir / "pretrain" / "checkpoints")
    experiment.run(runs.digits(**runs.FIELDS, stages=("report",)), workdir)
