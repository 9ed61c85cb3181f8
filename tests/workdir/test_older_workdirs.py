"""A finished run outlives the next field of the configuration, and its flags."""

import json
import shutil

import pytest
import runs
from etils import epath
from ml_collections import config_dict

from harp_jax.config import default, of_workdir
from harp_jax.config.recipes import with_recipe
from harp_jax.data import load
from harp_jax.workdir import WorkdirError, identity, ownership, provenance, sources
from harp_jax.workdir.claims import read_claim


@pytest.fixture
def older(tmp_path_factory, tmp_path):
    """A copy of a finished run, as a version with other fields would have left it."""
    workdir = tmp_path / "older"
    shutil.copytree(runs.finished(tmp_path_factory.getbasetemp()), workdir)
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["prune"]["live"], content["config"]["own"], content["data"]
    content["config"]["prune"]["forgotten"] = 1
    del content["sources"]
    path.write_text(json.dumps(content))
    table = runs.results(workdir)
    for row in table["rows"]:
        del row["network_digest"], row["images_digest"]
    (workdir / "results.json").write_text(json.dumps(table))
    return workdir


@pytest.mark.slow
def test_it_is_evaluated_with_other_attacks_and_reported_without_its_flags(older):
    before = runs.results(older)
    done = runs.here(
        [
            *[part for part in runs.command(older) if not part.startswith("--config=")],
            "--config.stages=('evaluate','report')",
            "--config.evaluate.run=('fgsm',)",
            "--config.evaluate.stages=('finetune',)",
        ]
    )
    assert done.returncode == 0, done.stderr
    assert "did not know prune.live: at the defaults" in done.stderr
    assert "does not know the workdir's prune.forgotten" in done.stderr
    assert "did not record its data" in done.stderr
    (row,) = runs.results(older)["rows"]
    assert list(row["robust"]) == ["fgsm"]
    assert row["natural"] == before["rows"][-1]["natural"]
    previous = json.loads((older / "results.previous.json").read_text())
    assert {name: previous[name] for name in previous if name != "checksum"} == before
    # What that run was trained on stays unknown; what was measured now is of today's test images.
    recorded = json.loads((older / "config.json").read_text())
    assert recorded["data"] is None
    assert row["images_digest"] == load("digits", seed=0, validation_examples=150).test.digest()


def test_an_attack_is_taken_as_it_was_recorded(tmp_path):
    """Fields that the default attack of that name has, and this one had not, stay away."""
    config = ownership.plain(default())
    config["evaluate"]["attacks"]["pgd20"] = {"type": "FGSM", "epsilon": 0.1}
    (tmp_path / "config.json").write_text(json.dumps({"config": config}))
    found = of_workdir.get_config(str(tmp_path))
    assert found.evaluate.attacks.pgd20.to_dict() == {"type": "FGSM", "epsilon": 0.1}
    assert found.evaluate.attacks.pgd10.to_dict() == default().evaluate.attacks.pgd10.to_dict()


def test_the_recorded_configuration_is_the_run_s(tmp_path_factory):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    config = of_workdir.get_config(str(workdir))
    recorded = json.loads((workdir / "config.json").read_text())["config"]
    assert ownership.plain(config) == recorded
    assert isinstance(config.evaluate.run, tuple)
    assert isinstance(config, config_dict.ConfigDict)


def test_a_folder_without_a_run_is_one_line(tmp_path):
    command = [part for part in runs.command(tmp_path) if not part.startswith("--config=")]
    done = runs.here(command)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: workdir={str(tmp_path)!r}: has no config.json; allowed are folders of"
        " runs (a new run needs --config)"
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
    data = {"name": "d", "version": None, "digests": digests}
    stage = epath.Path(tmp_path) / "prune"
    stage.mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "data": data}))
    same = {"digests": {**digests, "test": "x"}}
    other = {"digests": {**digests, "train": "x"}}
    assert sources.trained_on_others(stage, same) is None
    text = sources.trained_on_others(stage, other)
    assert text is not None
    assert "other train images" in text
    assert text in (sources.trained_on_others(stage / "result", other) or "").replace("/result", "")
    best = stage / "checkpoints" / "best" / "12"
    assert sources.trained_on_others(best, same) is None
    # Files of the same name that are not of a run say nothing, wherever they are.
    for content in ('{"model_type": "x"}', "{", '{"config": {}, "data": 3}', '["config"]'):
        stage.joinpath("config.json").write_text(content)
        assert sources.trained_on_others(best, same) is None
        assert "other train images" in (sources.trained_on_others(best, other) or "")


@pytest.mark.parametrize("content", [None, "[", '{"config": {}}', '{"config": {}, "data": null}'])
def test_a_source_that_does_not_say_its_images_is_said(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    data = {"digests": {"train": "a", "validation": "b"}}
    text = sources.trained_on_others(epath.Path(tmp_path) / "prune", data)
    assert text is not None
    assert "no record of the images it was made with: made with another seed" in text


def test_a_recipe_that_gives_more_by_now_leaves_an_older_run_as_it_was(tmp_path):
    recorded = ownership.plain(with_recipe(runs.digits(**{"prune.recipe": "best"})))
    del recorded["prune"]["window"]
    (tmp_path / "config.json").write_text(json.dumps({"config": recorded}))
    config = with_recipe(of_workdir.get_config(str(tmp_path)))
    assert (config.prune.window, config.prune.live, config.prune.anneal) == (0.0, True, 0.5)
    fields = ownership.plain(config), ownership.plain(default())
    assert ownership.earlier_run(epath.Path(tmp_path), *fields) is not None


def test_a_default_that_has_changed_since_is_the_former_one(tmp_path, monkeypatch):
    recorded = ownership.plain(runs.digits())
    del recorded["prune"]["clip_norm"]
    content = {"config": recorded, "format": 1}
    (tmp_path / "config.json").write_text(json.dumps(content))
    monkeypatch.setitem(identity.FORMER_DEFAULTS, "prune.clip_norm", (2, 0.5))
    config = of_workdir.get_config(str(tmp_path))
    assert config.prune.clip_norm == 0.5
    fields = ownership.plain(config), ownership.plain(default())
    assert ownership.earlier_run(epath.Path(tmp_path), *fields) is not None
    (tmp_path / "config.json").write_text(json.dumps({**content, "format": 2}))
    assert of_workdir.get_config(str(tmp_path)).prune.clip_norm == default().prune.clip_norm


BROKEN = {
    "truncated": '{"config": {"see',
    "empty": "",
    "not text": b"\xff\xfe\x00",
    "a list": "[]",
    "a number": "7",
    "of another program": '{"model_type": "x"}',
    "a config that is no object": '{"config": 7}',
    "a section that is no object": '{"config": {"prune": 7}}',
    "data without digests": '{"config": {}, "data": {"name": "d"}}',
    "a source without digest": '{"config": {}, "sources": {"prune.source": "x"}}',
    "a format in words": '{"config": {}, "format": "one"}',
    "a history in words": '{"config": {}, "history": "long"}',
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_a_config_json_that_is_not_of_a_run(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WorkdirError, match=r"workdir=.*: its config\.json "):
        ownership.earlier_run(epath.Path(tmp_path), {}, {})
    with pytest.raises(WorkdirError, match=r"workdir=.*: its config\.json ") as caught:
        of_workdir.get_config(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_a_recorded_value_of_another_type(tmp_path):
    recorded = {"config": {"batch_size": "many"}}
    (tmp_path / "config.json").write_text(json.dumps(recorded))
    with pytest.raises(
        WorkdirError, match=r"config\.json has batch_size='many': allowed are whole numbers"
    ):
        of_workdir.get_config(str(tmp_path))


def test_earlier_code_stays_on_record(tmp_path, monkeypatch):
    data = {"name": "d", "version": None, "digests": {"train": "a", "validation": "b", "test": "c"}}
    workdir, config = epath.Path(tmp_path), runs.digits()

    def claim(begun):
        earlier = read_claim(workdir)
        stages = {stage: {} for stage in begun}
        ownership.claim(config, workdir, earlier, "1 cpu device", data, stages)
        return read_claim(workdir)

    first = claim([])
    assert first["history"] == []
    assert first["data"]["digests"] == {"train": "a", "validation": "b"}
    assert claim(["pretrain"])["history"] == []  # the same code
    monkeypatch.setattr(provenance, "revision", lambda: "another")
    second = claim(["pretrain", "prune"])
    before = {name: first[name] for name in ("versions", "revision", "since")}
    assert second["history"] == [{**before, "stages": ["pretrain", "prune"]}]
    assert second["revision"] == "another"
    monkeypatch.setattr(provenance, "versions", lambda: {"python": "4"})
    third = claim(["pretrain", "prune", "finetune"])
    assert third["history"][0] == second["history"][0]
    assert third["history"][1]["revision"] == "another"
    assert third["created"] == first["created"]
    assert claim(list(runs.STAGES))["history"] == third["history"]
