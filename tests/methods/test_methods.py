"""Every pruning method through the same stages, each on the same budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from numpy.testing import assert_allclose, assert_array_equal

import harp_jax
from harp_jax import checkpoint, models
from harp_jax.data import load, to_unit
from harp_jax.interrupt import Interrupt, InterruptedRunError
from harp_jax.methods import METHODS, Method, Sharpness
from harp_jax.methods.harp import Harp
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import channels, schemes
from harp_jax.pruning.layers import bake, leaves_by_path, tree_of_leaves
from harp_jax.pruning.live import live_weights
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.run import experiment, recipe
from harp_jax.training import stages

TARGET, TOTAL = 0.2, 3592
BUDGET = int(TARGET * TOTAL)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs stages of a method from the dense network of the finished run."""
    dense = runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"

    def in_workdir(workdir, method, **fields):
        settings = {
            "stages": ("prune",),
            "prune.source": str(dense),
            "prune.method": method,
            "prune.epochs": 2,
            "finetune.epochs": 1,
            # Of validation only, as other tests have it: training compiles faster without.
            "attack.steps": 3,
            "loss": "natural",
        }
        experiment.run(runs.digits(**(settings | fields)), workdir)
        return checkpoint.load(workdir / "prune")

    in_workdir.dense = checkpoint.load(dense)
    return in_workdir


def magnitudes(tree):
    leaves = leaves_by_path(tree)
    return np.concatenate([np.abs(leaves[path]).ravel() for path in sorted(leaves)])


def kept(variables):
    """Whether a weight is kept, in the order of `magnitudes`."""
    arrays = {name: variables[name] for name in variables if name != "metadata"}
    arrays["params"] = jax.tree.map(np.ones_like, arrays["params"])
    return magnitudes(kernels(jax.jit(bake)(arrays))) > 0


def kernels(variables):
    leaves = leaves_by_path(variables["params"])
    return tree_of_leaves({path: leaves[path] for path in leaves if path[-1] == "kernel"})


def test_every_stage_has_a_random_stream_of_its_own():
    streams = [*stages.STREAMS.values(), *(method.stream for method in METHODS.values())]
    assert streams == [0, 4, 1, 2, 3, 5, 6, 7, 8, 9, 10]  # for good: other numbers, other results
    assert Method.stream not in streams


@pytest.mark.slow
def test_global_magnitude_keeps_the_largest_weights_and_goes_on_like_any_other(run, tmp_path):
    pruned = run(
        tmp_path / "run",
        "magnitude",
        stages=("prune", "finetune", "evaluate", "report"),
        **{"prune.strategy": "global", "prune.alpha": 1e-3, "evaluate.run": ("fgsm",)},
    )
    weights, mask = magnitudes(kernels(run.dense)), kept(pruned)
    assert mask.sum() == BUDGET
    assert weights[mask].min() >= weights[~mask].max()
    jax.tree.map(assert_array_equal, pruned["params"], run.dense["params"])
    assert pruned["metadata"]["epoch"] is None
    assert not (tmp_path / "run" / "prune" / "metrics.jsonl").exists()
    rows = runs.results(tmp_path / "run")["rows"]
    assert [(row["stage"], row["parameters"]) for row in rows] == [
        ("prune", BUDGET),
        ("finetune", BUDGET),
    ]
    assert rows[1]["natural"] > rows[0]["natural"]
    assert "finetuned" in (tmp_path / "run" / "report" / "index.html").read_text()
    logits_fn, _ = harp_jax.load(tmp_path / "run")
    assert logits_fn(jnp.zeros((1, 8, 8, 1))).shape == (1, 10)


def test_random_pruning_is_a_function_of_the_seed(run, tmp_path):
    masks = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        masks[name] = kept(run(tmp_path / name, "random", seed=seed))
        assert masks[name].sum() == BUDGET
    assert_array_equal(masks["one"], masks["same"])
    # Chance agrees on the share 0.2^2 + 0.8^2 of the weights.
    assert (masks["one"] == masks["other"]).mean() == pytest.approx(0.68, abs=0.05)


ADMM = {"admm.rho": 0.05, "admm.growth": 2.0, "prune.learning_rate": 0.02, "prune.epochs": 3}


@pytest.fixture(scope="module")
def trained_by_admm(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("admm") / "run"
    return workdir, run(workdir, "admm", **ADMM)


@pytest.mark.slow
def test_admm_hands_on_what_was_measured(run, trained_by_admm):
    workdir, pruned = trained_by_admm
    mask, weights = kept(pruned), magnitudes(kernels(pruned))
    assert mask.sum() == BUDGET == sum(row.kept for row in layer_sparsity(pruned))
    assert not np.array_equal(weights, magnitudes(kernels(run.dense)))
    rows = runs.metrics(workdir, "prune")
    assert [row["compression"]["kept"] for row in rows] == [BUDGET] * 3
    chosen = max(rows, key=lambda row: row["validation"]["natural"])
    assert pruned["metadata"]["epoch"] == chosen["epoch"]
    split = load("digits", seed=0, validation_examples=150).validation
    logits_fn, _ = harp_jax.load(workdir / "prune")
    right = np.asarray(logits_fn(to_unit(jnp.asarray(split.images)))).argmax(-1) == split.labels
    assert right.mean() == pytest.approx(chosen["validation"]["natural"])


def test_admm_pulls_the_weights_that_go_to_zero(run, trained_by_admm):
    _, pruned = trained_by_admm
    mask = kept(pruned)
    share = {}
    for name, variables in (("before", run.dense), ("after", pruned)):
        squares = np.square(magnitudes(kernels(variables)))
        share[name] = squares[~mask].sum() / squares.sum()
    assert share["after"] < 0.5 * share["before"]


@pytest.mark.slow
def test_admm_goes_on_with_the_same_bits(run, trained_by_admm, tmp_path, monkeypatch):
    whole, expected = trained_by_admm
    with monkeypatch.context() as patch:
        # Within the second epoch, after the first renewal of Z and U.
        patch.setattr(Interrupt, "requested", lambda self, step: step == 27)
        with pytest.raises(InterruptedRunError):
            run(tmp_path / "run", "admm", **ADMM)
    found = run(tmp_path / "run", "admm", **ADMM)
    jax.tree.map(assert_array_equal, found["params"], expected["params"])
    jax.tree.map(assert_array_equal, found["scores"], expected["scores"])
    assert found["metadata"] == expected["metadata"]
    assert runs.metrics(tmp_path / "run", "prune") == runs.metrics(whole, "prune")


@pytest.mark.slow
def test_live_pruning_ends_on_connections_that_are_fed_and_read(run, tmp_path):
    shares, target = {}, {"prune.target": 0.05}
    for method, fields in (("magnitude", {}), ("harp", {"prune.live": True, "prune.epochs": 3})):
        pruned = run(tmp_path / method, method, **target, **fields)
        arrays = {name: pruned[name] for name in pruned if name != "metadata"}
        params = jax.jit(bake)(arrays)["params"]
        groups = channels.trace(models.create("tiny", 10), (8, 8, 1)).groups
        counts = live_weights(params, groups)
        kept_weights = sum(row.kept for row in layer_sparsity(pruned))
        assert kept_weights <= 0.05 * TOTAL
        shares[method] = sum(counts.values()) / kept_weights
    assert shares["harp"] > 0.95 > shares["magnitude"]


@pytest.mark.slow
def test_scores_learn_with_sharpness(run, tmp_path):
    learned = run(tmp_path / "run", "score", **{"prune.epochs": 3, "prune.sharpness": 0.05})
    first = run(tmp_path / "first", "magnitude")
    assert kept(learned).sum() == kept(first).sum() == BUDGET
    assert not np.array_equal(kept(learned), kept(first))
    losses = [row["train"]["loss"] for row in runs.metrics(tmp_path / "run", "prune")]
    assert losses[-1] < 0.8 * losses[0]


def test_layers_that_share_channels_are_perturbed_alike():
    scheme = schemes.scheme(ResNet(10, stages=(1, 1), width=4), (8, 8, 1), "channel")
    told = recipe.setting(runs.digits(), scheme, 10)
    assert Harp().ascend(told) is None
    move = Sharpness(Harp(), 0.3).ascend(told)
    assert move is not None
    rng, groups = np.random.default_rng(0), scheme.architecture.prunable
    scores, gradient, reader = {}, {}, {}
    for group in groups:
        shared = jnp.float32(rng.standard_normal(group.size))
        for path in group.readers:
            scores[path], reader[path] = shared, group.readers[0]
            gradient[path] = jnp.float32(rng.standard_normal(group.size))
    assert len(scores) > len(groups)
    moved = leaves_by_path(move(tree_of_leaves(scores), tree_of_leaves(gradient)))
    for path, leaf in moved.items():
        assert_array_equal(leaf, moved[reader[path]])
        length = np.linalg.norm(leaf - scores[path])
        assert_allclose(length, 0.3 * np.linalg.norm(scores[path]), rtol=1e-5)
