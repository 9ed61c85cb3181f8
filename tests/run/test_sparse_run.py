"""Runs whose networks compute with their kept weights alone, against masked dense ones."""

import logging
import shutil

import numpy as np
import pytest
import runs

from harp_jax import native
from harp_jax.config import ConfigError, validate
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.run import experiment

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")

SAID = "finetune: 4 layers compute with their"
FIELDS = {
    "model": "small_networks:broad",
    "loss": "natural",  # an attack's signs would enlarge rounding
    "pretrain.epochs": 3,
    "prune.method": "magnitude",
    "prune.target": 0.1,
    "finetune.epochs": 2,
    "evaluate.stages": ("finetune",),
    "evaluate.run": ("fgsm",),
}


def config(*stages, **fields):
    return runs.digits(**FIELDS, stages=stages, **fields)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pruned") / "run"
    experiment.run(config("pretrain", "prune"), workdir)
    return workdir


@pytest.fixture
def finetune(pruned, tmp_path, caplog, monkeypatch):
    """Finetunes a copy of the pruned run and evaluates it; returns the folder and the log."""
    monkeypatch.setattr(logging.getLogger("harp_jax"), "propagate", True)

    def run(name, **fields):
        workdir = tmp_path / name
        if not workdir.exists():
            shutil.copytree(pruned, workdir)
        caplog.clear()
        with caplog.at_level(logging.INFO, "harp_jax"):
            experiment.run(config("finetune", "evaluate", **fields), workdir)
        return workdir, caplog.text

    return run


def test_numbers_are_those_of_the_masked_network_up_to_rounding(finetune):
    (sparse, said), (dense, said_of_dense) = finetune("sparse"), finetune("dense", sparse="off")
    assert said.count(SAID) == 1
    assert SAID not in said_of_dense
    differences = runs.differences(sparse, dense, ("finetune",))
    assert 0 < max(differences.values()) < 1e-4
    for row, other in zip(*(runs.metrics(w, "finetune") for w in (sparse, dense)), strict=True):
        assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
    (row,), (other,) = (runs.results(workdir)["rows"] for workdir in (sparse, dense))
    assert row["natural"] == pytest.approx(other["natural"], abs=2 / 359)
    assert row["robust"]["fgsm"] == pytest.approx(other["robust"]["fgsm"], abs=3 / 359)
    assert np.isclose(row["sparsity"], 0.9, atol=1e-3)


def test_a_stopped_one_ends_in_the_same_bits(finetune, monkeypatch):
    whole, _ = finetune("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step=0: step == 27)
        with pytest.raises(InterruptedRunError):
            finetune("stopped")
    stopped, _ = finetune("stopped")
    runs.assert_identical(whole, stopped, ("finetune",))


def test_other_values_are_refused():
    with pytest.raises(ConfigError, match="sparse='on': allowed are auto, off"):
        validate(runs.digits(sparse="on"))
