"""An annealed budget in a run: it comes down, ends on the target, and resumes exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from numpy.testing import assert_array_equal

from harp_jax import checkpoint
from harp_jax.config.sections import method
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.methods import Anneal, Live, Setting
from harp_jax.methods.harp import Harp
from harp_jax.methods.hydra import Hydra
from harp_jax.methods.live import live_masking
from harp_jax.models import create
from harp_jax.pruning import channels, schemes
from harp_jax.pruning.layers import bake, leaves_by_path, make_prunable
from harp_jax.run import experiment, recipe
from harp_jax.training import state as train_state

TOTAL, BUDGET = 3592, int(0.2 * 3592)
FIELDS = {
    "stages": ("prune",),
    "loss": "natural",
    "attack.steps": 3,
    "prune.epochs": 4,
    "prune.anneal": 0.5,
    "prune.gamma0": 0.5,
}


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    def prune(name, **fields):
        dense = runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"
        config = runs.digits(**(FIELDS | {"prune.source": str(dense)} | fields))
        experiment.run(config, tmp_path / name)
        return tmp_path / name

    return prune


def kept(rows):
    return [row["compression"]["kept"] for row in rows]


def test_learned_rates_follow_the_target_down(run):
    rows = runs.metrics(run("run"), "prune")
    at_once = runs.metrics(run("at_once", **{"prune.anneal": 0.0}), "prune")
    halfway = TOTAL * (0.5 * 0.2) ** 0.5  # after a quarter of the stage, of the half that anneals
    assert kept(at_once)[0] < 0.9 * halfway < kept(rows)[0] < 1.2 * halfway
    assert not rows[0]["compression"]["reached"]
    assert not rows[0]["best"]
    assert rows[-1]["compression"]["target"] == 0.2
    assert any(row["compression"]["reached"] for row in rows[1:])
    first = next(row["epoch"] for row in rows if row["compression"]["reached"])
    assert not any(row["best"] for row in rows[:first])
    frozen = [row["compression"]["frozen"] for row in rows]
    assert not any(frozen[: first + 1])


@pytest.mark.slow
def test_fixed_rates_come_down_to_the_budget_and_are_chosen_there(run, tmp_path):
    workdir = run("run", **{"prune.method": "score"})
    rows = runs.metrics(workdir, "prune")
    assert [number > 1.5 * BUDGET for number in kept(rows)] == [True, False, False, False]
    assert kept(rows)[1:] == [BUDGET] * 3
    assert [row["compression"]["reached"] for row in rows] == [False, True, True, True]
    assert checkpoint.load(workdir)["metadata"]["epoch"] >= 1
    plain = run("plain", **{"prune.method": "score", "prune.anneal": 0.0})
    for name in ("rates", "minimum_rates"):
        same = (checkpoint.load(each)[name] for each in (workdir, plain))
        jax.tree.map(assert_array_equal, *same)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["harp", "score"])
def test_it_goes_on_with_the_same_bits(name, run, monkeypatch):
    fields = {"prune.method": name, "prune.live": True, "prune.live_after": 0.5}
    whole = run("whole", **fields)
    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", lambda self, step: step == 27)
        with pytest.raises(InterruptedRunError):
            run("run", **fields)
    again = run("run", **fields)
    assert set(runs.differences(whole, again, ("prune",)).values()) == {0.0}
    assert runs.metrics(whole, "prune") == runs.metrics(again, "prune")


@pytest.mark.parametrize(
    ("share", "epochs", "first"), [(0.5, 5, 2), (0.5, 4, 1), (1.0, 4, 3), (0.01, 4, 0), (0.8, 5, 3)]
)
def test_fixed_rates_are_chosen_with_their_final_numbers(share, epochs, first):
    scheme = schemes.scheme(create("tiny", 10), (8, 8, 1), "weight")
    setting = Setting(scheme, 0.2, 0.02, updates_per_epoch=10, epochs=epochs, seed=0)
    assert Anneal(Hydra(), share).chosen_from(setting) == first
    assert Anneal(Harp(), share).chosen_from(setting) == 0  # by what the rates reach


def test_the_first_step_of_fixed_rates_sees_nearly_all_weights():
    config = runs.digits(**FIELDS, **{"prune.method": "score"})
    model = create("tiny", 10)
    scheme = schemes.scheme(model, (8, 8, 1), "weight")
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rates = dict.fromkeys(scheme.architecture.pruned, 0.2)
    variables = scheme.make_prunable(variables, rates, 0.02)
    stage = recipe.make_stage(config, "prune", scheme, 10, variables)
    first = train_state.create(stage, variables).variables
    kernels = leaves_by_path(jax.jit(bake)(first)["params"])
    assert all(np.mean(kernels[path] != 0) > 0.98 for path in scheme.architecture.pruned)
    assert isinstance(method(config), Anneal)


def test_units_are_removed_only_after_the_given_updates():
    model = create("tiny", 10)
    groups = channels.trace(model, (8, 8, 1)).groups
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    paths = schemes.scheme(model, (8, 8, 1), "weight").architecture.pruned
    variables = make_prunable(variables, dict.fromkeys(paths, 0.01), 0.0, "weight")
    params = jax.jit(bake)(variables)["params"]
    follow = jax.jit(live_masking(groups, after=10).follow)
    at_once = live_masking(groups).follow(variables, variables, params, jnp.int32(1))
    assert any((leaf == 0).any() for leaf in leaves_by_path(at_once["scores"]).values())
    for updates, expected in ((9, variables), (10, at_once), (11, at_once)):
        found = follow(variables, variables, params, jnp.int32(updates))
        jax.tree.map(assert_array_equal, found["scores"], expected["scores"])


def test_the_share_of_live_connections_is_checked():
    with pytest.raises(ValueError, match=r"after=1\.5: allowed are numbers in \[0, 1\]"):
        Live(method(runs.digits()), 1.5)
    with pytest.raises(ValueError, match=r"share=0\.0: allowed are numbers in \(0, 1\]"):
        Anneal(method(runs.digits()), 0.0)
