"""Methods that train the weights while they prune, and regrowth while finetuning, in whole runs."""

import logging

import jax
import numpy as np
import pytest
import runs
from numpy.testing import assert_array_equal

from harp_jax import checkpoint
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.pruning.layers import leaves_by_path
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.run import experiment

TARGET, TOTAL = 0.2, 3592
BUDGET = int(TARGET * TOTAL)
# Of validation only, as other tests have it: training compiles faster without.
SHORT = {"attack.steps": 3, "loss": "natural", "evaluate.run": ("fgsm",)}
METHODS = {
    "flying_bird": {"prune.epochs": 4, "prune.strategy": "erk", "flying_bird.drop": 0.2},
    # All that is seen leads to a change.
    "flying_bird_plus": {
        "prune.epochs": 6,
        "flying_bird_plus.drop": 0.2,
        "flying_bird_plus.threshold": 0.01,
    },
    "twin_rep": {"prune.epochs": 4, "twin_rep.dense": 0.5},
}
STOPS = {"flying_bird": 27, "flying_bird_plus": 65, "twin_rep": 47}  # after the first changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def prune(finished):
    """Prunes and finetunes the dense network of the finished run by a method."""

    def in_workdir(workdir, name, **fields):
        settings = {
            "stages": ("prune", "finetune", "evaluate", "report"),
            "prune.source": str(finished / "pretrain"),
            "prune.method": name,
            "prune.learning_rate": 0.05,
            "finetune.epochs": 1,
        }
        experiment.run(runs.digits(**(SHORT | settings | METHODS[name] | fields)), workdir)
        return workdir

    return in_workdir


# `flying_bird_plus` does all that `flying_bird` does.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("flying_bird", "twin_rep")]


@pytest.fixture(scope="module", params=[*SLOW, "flying_bird_plus"])
def run(request, prune, tmp_path_factory):
    return request.param, prune(tmp_path_factory.mktemp(request.param) / "run", request.param)


def kept(variables):
    return sum(row.kept for row in layer_sparsity(variables))


def weights(variables):
    leaves = leaves_by_path(variables["params"])
    return np.concatenate(
        [leaves[path].ravel() for path in sorted(leaves) if leaves[path].ndim > 1]
    )


@pytest.mark.slow
def test_a_whole_run_ends_on_the_budget_to_the_weight(run, finished):
    name, workdir = run
    pruned, finetuned = (checkpoint.load(workdir / stage) for stage in ("prune", "finetune"))
    assert kept(pruned) == kept(finetuned) == BUDGET
    assert not np.isclose(weights(pruned), weights(checkpoint.load(finished / "pretrain"))).all()
    rows = runs.metrics(workdir, "prune")
    counts = [row["compression"]["kept"] for row in rows]
    assert counts[-1] == BUDGET
    assert (set(counts) == {BUDGET}) == (name != "flying_bird_plus")
    best = max(row["validation"]["natural"] for row in rows if row["best"])
    assert rows[pruned["metadata"]["epoch"]]["validation"]["natural"] == best
    found = runs.results(workdir)["rows"]
    assert [(row["stage"], row["parameters"]) for row in found] == [
        ("prune", BUDGET),
        ("finetune", BUDGET),
    ]
    assert found[1]["natural"] > 0.8
    if name == "flying_bird_plus":
        assert not any(row["best"] for row in rows[:4])  # epoch 4 returns to the budget
        assert rows[4]["best"]
        assert rows[3]["compression"]["kept"] != BUDGET
        assert pruned["metadata"]["epoch"] >= 4
    if name == "flying_bird":  # the rates are those of the strategy
        layers = {row.layer: row.kept / row.parameters for row in layer_sparsity(pruned)}
        assert layers["conv1"] > 2 * layers["dense1"]


@pytest.mark.slow
def test_a_stopped_run_ends_in_the_same_bits(run, prune, tmp_path, monkeypatch):
    name, whole = run
    stages = ("prune", "finetune", "evaluate")
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step=0: step == STOPS[name])
        with pytest.raises(InterruptedRunError):
            prune(tmp_path / "run", name, stages=stages)
    prune(tmp_path / "run", name, stages=stages)
    runs.assert_identical(whole, tmp_path / "run", ("prune", "finetune"))


@pytest.mark.slow
def test_twin_rep_prunes_channels(prune, tmp_path):
    fields = {"prune.granularity": "channel", "prune.target": 0.5, "stages": ("prune",)}
    workdir = prune(tmp_path / "run", "twin_rep", **fields)
    rows = runs.metrics(workdir, "prune")
    assert all(row["compression"]["reached"] for row in rows)
    assert rows[-1]["validation"]["natural"] > 0.5
    layers = layer_sparsity(checkpoint.load(workdir / "prune"))
    assert any(row.kept < row.parameters for row in layers)


@pytest.fixture(scope="module")
def finetune(finished, tmp_path_factory):
    """Finetunes the pruned network of the finished run in a folder of a name."""
    folder = tmp_path_factory.mktemp("finetune")

    def run(name, regrow):
        settings = {
            "stages": ("finetune", "evaluate"),
            "finetune.source": str(finished / "prune"),
            "finetune.epochs": 3,
            "finetune.regrow": regrow,
        }
        experiment.run(runs.digits(**(SHORT | settings)), folder / name)
        return folder / name

    return run


@pytest.mark.slow
def test_finetuning_regrows_on_the_same_budget_and_resumes(finetune, finished, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("harp_jax"), "propagate", True)
    with caplog.at_level(logging.INFO, "harp_jax"):
        whole = finetune("whole", 0.2)
    assert "masks change (finetune.regrow)" in caplog.text
    before, after = checkpoint.load(finished / "prune"), checkpoint.load(whole / "finetune")
    jax.tree.map(assert_array_equal, before["rates"], after["rates"])
    assert kept(before) == kept(after) == runs.results(whole)["rows"][0]["parameters"]
    moved = jax.tree.map(np.array_equal, *map(scores, (before, after)))
    assert not any(jax.tree.leaves(moved))
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step=0: step == 30)
        with pytest.raises(InterruptedRunError):
            finetune("stopped", 0.2)
    runs.assert_identical(whole, finetune("stopped", 0.2), ("finetune",))


def scores(variables):
    return variables["scores"]


@pytest.mark.slow
def test_masks_stay_without_regrowth(finetune, finished):
    after = checkpoint.load(finetune("fixed", 0.0) / "finetune")
    jax.tree.map(assert_array_equal, scores(checkpoint.load(finished / "prune")), scores(after))
