"""A finished run outlives the next field of the configuration, and its flags."""

import json
import shutil

import pytest
import runs
from etils import epath
from ml_collections import config_dict

from harp_jax.config import of_workdir
from harp_jax.workdir import WorkdirError, ownership


@pytest.fixture
def older(tmp_path_factory, tmp_path):
    """A copy of a finished run, as a version with other fields would have left it."""
    workdir = tmp_path / "older"
    shutil.copytree(runs.finished(tmp_path_factory.getbasetemp()), workdir)
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["prune"]["live"], content["config"]["own"], content["data"]
    content["config"]["prune"]["forgotten"] = 1
    path.write_text(json.dumps(content))
    return workdir


def test_it_is_evaluated_with_other_attacks_and_reported_without_its_flags(older, tmp_path_factory):
    before = runs.results(older)
    done = runs.call(
        [
            *[part for part in runs.command(older) if not part.startswith("--config=")],
            "--config.stages=('evaluate','report')",
            "--config.evaluate.run=('fgsm',)",
            "--config.evaluate.stages=('finetune',)",
            runs.cache_option(tmp_path_factory.getbasetemp()),
        ]
    )
    assert done.returncode == 0, done.stderr
    assert "did not know prune.live: at the defaults" in done.stderr
    assert "does not know the workdir's prune.forgotten" in done.stderr
    assert "did not record its data" in done.stderr
    (row,) = runs.results(older)["rows"]
    assert list(row["robust"]) == ["fgsm"]
    assert row["natural"] == before["rows"][-1]["natural"]
    assert json.loads((older / "results.previous.json").read_text()) == before


def test_the_recorded_configuration_is_the_run_s(tmp_path_factory):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    config = of_workdir.get_config(str(workdir))
    recorded = json.loads((workdir / "config.json").read_text())["config"]
    assert ownership.plain(config) == recorded
    assert isinstance(config.evaluate.run, tuple)
    assert isinstance(config, config_dict.ConfigDict)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    command = [part for part in runs.command(tmp_path) if not part.startswith("--config=")]
    done = runs.call(command)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: workdir={str(tmp_path)!r}: has no config.json; allowed without --config are"
        " folders of runs"
    ]


def test_other_training_images_are_refused(tmp_path):
    data = {"name": "d", "version": "1", "digests": {"train": "aa", "validation": "b", "test": "c"}}
    workdir = epath.Path(tmp_path)
    ownership.check_data(workdir, None, data)
    ownership.check_data(workdir, {"data": data}, data)
    other = {**data, "version": "2", "digests": {**data["digests"], "test": "x"}}
    ownership.check_data(workdir, {"data": data}, other)  # test data may have another size
    other["digests"]["validation"] = "y"
    with pytest.raises(WorkdirError, match=r"validation images are of d 1 \(b\), not of d 2 \(y\)"):
        ownership.check_data(workdir, {"data": data}, other)


def test_a_source_that_saw_other_images_is_said(tmp_path):
    digests = {"train": "a", "validation": "b", "test": "c"}
    stage = epath.Path(tmp_path) / "prune"
    stage.mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "data": {"digests": digests}}))
    same = {"digests": {**digests, "test": "x"}}
    other = {"digests": {**digests, "train": "x"}}
    assert ownership.trained_on_others(stage, same) is None
    text = ownership.trained_on_others(stage, other)
    assert text is not None
    assert "other train images" in text
    assert ownership.trained_on_others(epath.Path(tmp_path / "elsewhere"), other) is not None
    assert ownership.trained_on_others(epath.Path("/nowhere/at/all"), other) is None
