"""The source of a stage that has begun: its path may change, what is there may not."""

import json
import shutil

import jax
import numpy as np
import pytest
import runs
from etils import epath

from harp_jax import checkpoint
from harp_jax.run import experiment
from harp_jax.run.sources import needed
from harp_jax.training.stages import STAGES
from harp_jax.workdir import WorkdirError

RATES = {"conv1": 0.5, "conv2": 0.5, "dense1": 0.5, "dense2": 0.5}
TRAINING = ("prune",)
LOOKING = ("report",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def pruned(finished, tmp_path_factory):
    """A run that pruned another's dense network from the rates of a file, in one shot."""
    folder = tmp_path_factory.mktemp("pruned")
    shutil.copytree(finished / "pretrain" / "result", folder / "dense")
    (folder / "rates.json").write_text(json.dumps(RATES))
    experiment.run(config(folder, stages=("prune", "evaluate")), folder / "run")
    return folder


@pytest.fixture
def folder(pruned, tmp_path):
    """A copy of it; config.json still has the paths in the original."""
    shutil.copytree(pruned, tmp_path / "copy")
    return tmp_path / "copy"


def config(folder, **fields):
    given = {
        "prune.method": "magnitude",
        "prune.source": str(folder / "dense"),
        "prune.strategy": f"json:{folder / 'rates.json'}",
        "evaluate.run": ("fgsm",),
    }
    return runs.digits(**{**runs.FIELDS, **given, **fields})


def recorded(folder):
    return json.loads((folder / "run" / "config.json").read_text())


def refused(said, folder, **fields):
    before = (folder / "run" / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"\S") as caught:
        experiment.run(config(folder, **fields), folder / "run")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert (folder / "run" / "config.json").read_bytes() == before
    return caught.value


def other_network(path):
    """Replaces a checkpoint's network by one that differs in one number."""
    variables = checkpoint.load(path)
    metadata = variables.pop("metadata")
    variables["params"]["dense2"]["bias"] = variables["params"]["dense2"]["bias"] + np.float32(1)
    shutil.rmtree(path)
    checkpoint.save_result(path.parent / f"{path.name}.stage", variables, metadata)
    (path.parent / f"{path.name}.stage" / "result").rename(path)


@pytest.mark.parametrize(
    ("asked", "given", "expected"),
    [
        (STAGES, (), list(STAGES)),
        (STAGES, ("prune",), ["prune", "finetune"]),
        (STAGES, ("finetune",), ["finetune"]),
        (("prune", "finetune"), ("finetune",), ["finetune"]),
        (("pretrain", "finetune"), ("finetune",), ["pretrain", "finetune"]),
        (("pretrain",), ("prune",), ["pretrain"]),
    ],
)
def test_stages_whose_network_nothing_reads_are_left_out(asked, given, expected):
    fields = {f"{stage}.source": "elsewhere" for stage in given}
    assert needed(runs.digits(**fields, stages=asked)) == expected


def test_what_a_stage_started_from_is_on_record(pruned, finished):
    sources = recorded(pruned)["sources"]
    dense = checkpoint.load(pruned / "dense")
    del dense["metadata"]
    assert sources["prune.source"] == {
        "given": str(pruned / "dense"),
        "digest": checkpoint.digest(dense),
    }
    assert sources["prune.strategy"]["given"] == f"json:{pruned / 'rates.json'}"
    own = json.loads((finished / "config.json").read_text())["sources"]
    assert set(own) == {"prune.source", "finetune.source"}
    assert own["prune.source"] == {"given": "", "digest": checkpoint.digest(dense)}


@pytest.mark.parametrize("stages", [TRAINING, LOOKING])
def test_equal_sources_elsewhere_are_accepted_and_recorded(stages, folder):
    before = recorded(folder)["sources"]
    experiment.run(config(folder, stages=stages), folder / "run")
    after = recorded(folder)
    for field in before:
        assert after["sources"][field]["digest"] == before[field]["digest"]
    assert after["sources"]["prune.source"]["given"] == str(folder / "dense")
    assert after["config"]["prune"]["source"] == str(folder / "dense")


@pytest.mark.parametrize("stages", [TRAINING, LOOKING])
def test_another_network_is_refused(stages, folder):
    other_network(folder / "dense")
    error = refused("prune.source=", folder, stages=stages)
    assert isinstance(error, WorkdirError)
    assert "allowed are a new folder or the same source" in str(error)
    nowhere = {"prune.source": str(folder / "nowhere"), "stages": stages}
    refused("no checkpoint; allowed are", folder, **nowhere)
    refused("prune.source='': prune in workdir=", folder, **{"prune.source": "", "stages": stages})


@pytest.mark.parametrize("stages", [TRAINING, LOOKING])
def test_other_rates_are_refused(stages, folder):
    (folder / "rates.json").write_text(json.dumps({**RATES, "conv2": 0.4}))
    refused("prune.strategy='json:", folder, stages=stages)
    gone = {"prune.strategy": f"json:{folder / 'none.json'}", "stages": stages}
    refused("No such file", folder, **gone)


def test_sources_that_are_gone_are_no_problem_once_the_stage_is_complete(folder):
    experiment.run(config(folder, stages=LOOKING), folder / "run")  # now at the paths of the copy
    shutil.rmtree(folder / "dense")
    (folder / "rates.json").unlink()
    for stages in (TRAINING, LOOKING):
        before = recorded(folder)["sources"]
        experiment.run(config(folder, stages=stages), folder / "run")
        assert recorded(folder)["sources"] == before


def test_a_source_that_has_changed_at_its_place(folder):
    experiment.run(config(folder, stages=LOOKING), folder / "run")
    other_network(folder / "dense")
    experiment.run(config(folder, stages=LOOKING), folder / "run")  # which does not read it
    refused("prune.source=", folder, stages=TRAINING)


def test_a_run_that_did_not_record_its_sources(folder, pruned, caplog):
    path = folder / "run" / "config.json"
    content = recorded(folder)
    del content["sources"]
    path.write_text(json.dumps(content))
    refused("(digest unknown)", folder, stages=TRAINING)
    with caplog.at_level("INFO", "harp_jax"):
        experiment.run(config(pruned, stages=TRAINING), folder / "run")
    assert "prune.source: the workdir's run did not record its digest" in caplog.text
    assert recorded(folder)["sources"]["prune.source"]["digest"] is None  # and still not known


def test_a_stage_that_has_begun_keeps_its_source(folder, monkeypatch):
    shutil.rmtree(folder / "run" / "prune")
    has_begun = checkpoint.has_begun
    other_network(folder / "dense")
    monkeypatch.setattr(checkpoint, "has_begun", lambda path: path.name == "prune")
    refused("prune.source=", folder, stages=TRAINING)
    monkeypatch.setattr(checkpoint, "has_begun", has_begun)
    experiment.run(config(folder, stages=TRAINING), folder / "run")  # nothing was trained yet
    dense = checkpoint.load(folder / "dense")
    del dense["metadata"]
    assert recorded(folder)["sources"]["prune.source"]["digest"] == checkpoint.digest(dense)


def test_a_stage_has_begun_with_its_first_checkpoint(finished, tmp_path):
    stage = epath.Path(tmp_path) / "prune"
    assert not checkpoint.has_begun(stage)
    shutil.copytree(finished / "prune" / "checkpoints" / "best", stage / "checkpoints" / "best")
    assert not checkpoint.has_begun(stage)
    shutil.copytree(finished / "prune" / "checkpoints" / "last", stage / "checkpoints" / "last")
    assert checkpoint.has_begun(stage)
    assert all(checkpoint.has_begun(finished / each) for each in STAGES)


def test_a_digest_tells_every_part_of_a_network():
    network = {"params": {"a": np.zeros((2, 3), np.float32)}, "rates": {"a": np.float32(0)}}
    others = [
        {"params": network["params"]},
        {**network, "rates": {"a": np.zeros(1, np.float32)}},
        {**network, "rates": {"a": np.float64(0)}},
        {**network, "rates": {"b": np.float32(0)}},
        {**network, "rates": {"a": np.float32(1)}},
        {**network, "params": {"a": np.zeros((3, 2), np.float32)}},
    ]
    digests = {checkpoint.digest(each) for each in (network, *others)}
    assert len(digests) == len(others) + 1
    arrays = jax.tree.map(jax.numpy.asarray, network)
    assert checkpoint.digest(arrays) == checkpoint.digest(network)
