"""Runs whose networks compute with their kept weights alone, against masked dense ones."""

import logging

import jax
import jax.numpy as jnp
import pytest
import runs
import small_networks

from harp_jax import checkpoint, native
from harp_jax.config import ConfigError, validate
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.pruning.layers import kernel_paths, make_prunable
from harp_jax.run import experiment

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")

SAID = "finetune: 4 layers compute with their"
FIELDS = {
    "model": "small_networks:broad",
    "stages": ("finetune", "evaluate"),
    "loss": "natural",  # an attack's signs would enlarge rounding
    "finetune.epochs": 2,
    "finetune.learning_rate": 0.1,
    "evaluate.run": ("pgd10",),  # as in validation: compiled once,
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The result of a prune stage: a network of random weights, a tenth of them kept."""
    variables = jax.jit(small_networks.broad(10).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rates = dict.fromkeys(kernel_paths(variables["params"]), 0.1)
    variables = make_prunable(variables, rates, 0.0, "weight")
    folder = tmp_path_factory.mktemp("pruned")
    checkpoint.save_result(folder, jax.device_get(variables), {"stage": "prune"})
    return folder


@pytest.fixture(scope="module")
def finetune(pruned, tmp_path_factory):
    """Finetunes and evaluates the pruned network in a folder of a name; returns the folder."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, **fields):
        config = runs.digits(**FIELDS, **{"finetune.source": str(pruned)}, **fields)
        experiment.run(config, folder / name)
        return folder / name

    return run


@pytest.fixture(scope="module")
def sparse(finetune):
    return finetune("sparse")


# One step's numbers are compared in tests/models/test_sparse.py.
@pytest.mark.slow
def test_numbers_are_those_of_the_masked_network_up_to_rounding(sparse, finetune):
    dense = finetune("dense", sparse="off")
    differences = runs.differences(sparse, dense, ("finetune",))
    assert 0 < max(differences.values()) < 1e-4
    for row, other in zip(*(runs.metrics(w, "finetune") for w in (sparse, dense)), strict=True):
        assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
    (row,), (other,) = (runs.results(workdir)["rows"] for workdir in (sparse, dense))
    assert row["natural"] > 0.3
    assert row["natural"] == pytest.approx(other["natural"], abs=2 / 359)
    assert row["robust"]["pgd10"] == pytest.approx(other["robust"]["pgd10"], abs=3 / 359)


@pytest.mark.slow
def test_a_stopped_one_ends_in_the_same_bits(sparse, finetune, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("harp_jax"), "propagate", True)
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "harp_jax"):
        patch.setattr(Interrupt, "requested", lambda self, step=0: step == 27)
        with pytest.raises(InterruptedRunError):
            finetune("stopped")
        assert caplog.text.count(SAID) == 1
    runs.assert_identical(sparse, finetune("stopped"), ("finetune",))


def test_other_values_are_refused():
    with pytest.raises(ConfigError, match="sparse='on': allowed are auto, off"):
        validate(runs.digits(sparse="on"))
