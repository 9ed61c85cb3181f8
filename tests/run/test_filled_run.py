"""Runs that end below the target and are filled up: all of the budget, alive with live masks."""

import jax
import pytest
import runs
from numpy.testing import assert_array_equal

from harp_jax import checkpoint, models
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.pruning import channels
from harp_jax.pruning.layers import bake
from harp_jax.pruning.live import live_weights
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.run import experiment

TOTAL = 3592
FIELDS = {
    "stages": ("prune",),
    "loss": "natural",
    "attack.steps": 3,
    "prune.target": 0.05,
    "prune.epochs": 2,
    "prune.gamma0": 5.0,  # far below the target
}


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    def prune(name, **fields):
        dense = runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"
        config = runs.digits(**(FIELDS | {"prune.source": str(dense)} | fields))
        experiment.run(config, tmp_path / name)
        return checkpoint.load(tmp_path / name / "prune")

    return prune


def kept_and_live(network):
    variables = {name: network[name] for name in network if name != "metadata"}
    params = jax.jit(bake)(variables)["params"]
    groups = channels.trace(models.create("tiny", 10), (8, 8, 1)).groups
    kept = sum(row.kept for row in layer_sparsity(variables))
    return kept, sum(live_weights(params, groups).values())


@pytest.mark.slow
def test_a_learned_network_is_filled_and_says_so(run):
    plain, filled = run("plain"), run("filled", **{"prune.fill": True})
    before, budget = kept_and_live(plain)[0], int(0.05 * TOTAL)
    assert before < budget == kept_and_live(filled)[0]
    note = f"prune: prune.fill raised rates: {budget} weights of {budget} allowed, before {before}"
    assert filled["metadata"]["notes"] == [note]
    for name in ("params", "scores", "batch_stats"):
        jax.tree.map(assert_array_equal, filled[name], plain[name])


@pytest.mark.slow
def test_live_networks_are_filled_with_live_weights_and_go_on_with_the_same_bits(run, monkeypatch):
    fields = {"prune.fill": True, "prune.live": True, "prune.gamma0": 0.5}
    filled = run("filled", **fields)
    assert kept_and_live(filled) == (int(0.05 * TOTAL), int(0.05 * TOTAL))
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step: step == 27)
        with pytest.raises(InterruptedRunError):
            run("again", **fields)
    jax.tree.map(assert_array_equal, run("again", **fields), filled)


def test_a_network_on_its_budget_stays_as_it_is(run):
    plain, filled = (
        run(name, **{"prune.method": "magnitude", "prune.fill": name == "filled"})
        for name in ("plain", "filled")
    )
    assert kept_and_live(filled)[0] == int(0.05 * TOTAL)
    jax.tree.map(assert_array_equal, filled, plain)


@pytest.mark.slow
def test_channels_are_filled_with_whole_channels(run):
    fields = {"prune.granularity": "channel", "prune.target": 0.5, "prune.epochs": 1}
    plain, filled = (
        run(name, **fields, **{"prune.fill": name == "filled"}) for name in ("a", "filled")
    )
    notes = filled["metadata"]["notes"]
    assert len(notes) == len(plain["metadata"]["notes"]) + 1
    assert kept_and_live(filled)[0] > kept_and_live(plain)[0]
