"""The examples of the documentation: a method, loss, attack and network in a file of one's own."""

import sys

import jax
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict
from numpy.testing import assert_array_equal

import harp_jax
from harp_jax import checkpoint
from harp_jax.pruning.layers import leaves_by_path
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.run import experiment

EXAMPLES = runs.ROOT / "docs" / "examples"
TARGET = 0.2


@pytest.fixture(autouse=True)
def own_modules(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"


def pruned(workdir, dense, method, **fields):
    settings = {
        "stages": ("prune",),
        "prune.source": str(dense),
        "prune.method": method,
        "prune.epochs": 2,
        "attack.steps": 3,
    }
    experiment.run(runs.digits(**settings | fields), workdir)
    return checkpoint.load(workdir / "prune")


def kept(variables):
    return sum(row.kept for row in layer_sparsity(variables))


def test_snip_scores_by_the_gradient_of_the_adversarial_loss(dense, tmp_path):
    variables = pruned(tmp_path / "run", dense, "own_method:SNIP")
    assert kept(variables) == int(TARGET * 3592)
    magnitude = pruned(tmp_path / "magnitude", dense, "magnitude")
    assert kept(magnitude) == kept(variables)
    scores, weights = (leaves_by_path(tree) for tree in (variables["scores"], variables["params"]))
    for path, score in scores.items():
        assert score.min() >= 0
        assert score.max() > 0
        assert_array_equal(score[weights[path] == 0], 0)
    ours, theirs = (
        np.argsort(tree["scores"]["dense1"]["kernel"].ravel()) for tree in (variables, magnitude)
    )
    assert not np.array_equal(ours, theirs)


@pytest.mark.slow
def test_gradual_pruning_ends_on_the_budget_and_not_before(dense, tmp_path):
    variables = pruned(
        tmp_path / "run", dense, "own_method:Gradual", loss="natural", **{"prune.epochs": 4}
    )
    rows = runs.metrics(tmp_path / "run", "prune")
    counts = [row["compression"]["kept"] for row in rows]
    assert counts[0] > counts[1] > counts[2] == counts[3] == kept(variables) == int(TARGET * 3592)
    # After 20 of 60 updates: 1 - (1 - rate) * (1 - (2 / 3) ** 3) of every layer.
    for name, rate in rows[0]["rates"].items():
        final = rows[3]["rates"][name]
        assert rate == pytest.approx(final + (1 - final) * (2 / 3) ** 3, abs=0.01), name


@pytest.mark.slow
def test_a_loss_an_attack_and_a_network_go_through_all_stages(tmp_path):
    config = runs.digits(
        **{
            "model": "own_network:mlp",
            "loss": "own_loss:ALP",
            "attack.steps": 3,
            "pretrain.epochs": 2,
            "prune.epochs": 1,
            "finetune.epochs": 1,
            "evaluate.run": ("mim",),
        }
    )
    settings = {"type": "own_attack:MIM", "epsilon": 0.1, "step_size": 0.025}
    config.evaluate.attacks.mim = ConfigDict(settings)
    config.own.ALP = ConfigDict({"weight": 0.25})
    workdir = tmp_path / "run"
    experiment.run(config, workdir)
    rows = runs.results(workdir)["rows"]
    assert [row["stage"] for row in rows] == ["pretrain", "prune", "finetune"]
    assert rows[2]["parameters"] == int(TARGET * rows[2]["total"]) == kept(checkpoint.load(workdir))
    assert rows[2]["natural"] > 0.7
    assert rows[2]["robust"]["mim"] < rows[2]["natural"]
    assert (workdir / "report" / "index.html").exists()
    assert "batch_stats" not in checkpoint.load(workdir)
    with pytest.raises(checkpoint.CheckpointError, match=r"own_network:mlp.*if you trust"):
        harp_jax.load(workdir)
    logits_fn, metadata = harp_jax.load(workdir, model="own_network:mlp")
    assert metadata["model"] == "own_network:mlp"
    assert logits_fn(jax.numpy.zeros((2, 8, 8, 1))).shape == (2, 10)


def test_settings_of_ones_own_are_checked_by_name(tmp_path):
    config = runs.digits(loss="own_loss:ALP")
    config.own.ALP = ConfigDict({"weight": 0.0})
    with pytest.raises(ValueError, match=r"own.ALP.weight=0.0: allowed are numbers > 0"):
        experiment.run(config, tmp_path / "run")
    config.own.ALP = ConfigDict({"wait": 0.1})
    with pytest.raises(ValueError, match=r"own.ALP.wait=0.1: .*allowed are the fields weight"):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_that_takes_no_normalization_is_refused_with_one(tmp_path):
    config = runs.digits(**{"model": "own_network:mlp", "data.mean": (0.5,), "data.std": (0.5,)})
    with pytest.raises(ValueError, match="model='own_network:mlp': takes no 'normalization'"):
        experiment.run(config, tmp_path / "run")


@pytest.mark.slow
def test_a_loop_of_ones_own_ends_on_its_budget():
    import own_loop

    variables, accuracy = own_loop.run(dense_epochs=4, prune_epochs=5)
    rows = layer_sparsity(variables)
    assert sum(row.kept for row in rows) <= 0.1 * sum(row.parameters for row in rows)
    assert sum(row.kept for row in rows) >= 0.05 * sum(row.parameters for row in rows)
    assert accuracy > 0.8
