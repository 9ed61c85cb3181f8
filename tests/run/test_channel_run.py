"""A run that prunes channels, from a dense network to its page."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import harp_jax
from harp_jax import checkpoint, models
from harp_jax.data import load, to_unit
from harp_jax.pruning.channels import FlopsCost, trace
from harp_jax.pruning.layers import bake, layer_name, leaves_by_path, rates_of
from harp_jax.run import experiment

TARGET, SHAPE = 0.5, (8, 8, 1)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    temporary = tmp_path_factory.getbasetemp()
    config = runs.digits(
        **{
            "stages": ("prune", "evaluate", "report"),
            "prune.source": str(runs.finished(temporary) / "pretrain"),
            "prune.granularity": "channel",
            "prune.target": TARGET,
            "prune.initial_rate": 0.9,
            "prune.epochs": 2,
            "loss": "natural",  # compiles faster than training with an attack
            "attack.steps": 3,
            "evaluate.run": ("pgd10",),
            "evaluate.attacks.pgd10.steps": 3,  # as in validation: compiled once
        }
    )
    experiment.run(config, temporary / "channels")
    return temporary / "channels"


@pytest.fixture(scope="module")
def cost():
    return FlopsCost(trace(models.create("tiny", 10), SHAPE))


def test_results_count_weights_and_flops_of_what_remains(workdir, cost):
    (row,) = runs.results(workdir)["rows"]
    allowed = cost.target_share(TARGET) * cost.total
    assert row["stage"] == "prune"
    assert row["total"] == 3592
    assert row["total_flops"] == cost.total
    assert 0.5 * allowed < row["flops"] <= allowed
    assert row["sparsity"] == 1 - row["parameters"] / row["total"]
    assert row["parameters"] == sum(layer["kept"] for layer in row["layers"])
    assert row["flops"] == sum(layer["kept_flops"] for layer in row["layers"])
    assert row["flops"] == cost.kept(rates_of(checkpoint.load(workdir / "prune")))


def test_masks_keep_whole_channels(workdir, cost):
    variables = checkpoint.load(workdir)
    del variables["metadata"]
    kernels = leaves_by_path(bake(jax.tree.map(jnp.asarray, variables))["params"])
    (row,) = runs.results(workdir)["rows"]
    kept = {layer["layer"]: layer["kept"] for layer in row["layers"]}
    for group, following in zip(
        cost.architecture.groups, cost.architecture.groups[1:], strict=False
    ):
        (path,) = group.readers
        used = (np.asarray(kernels[path]) != 0).any(-1).reshape(-1, group.size)
        np.testing.assert_array_equal(used.any(0), used.all(0))
        if following.readers:
            read = np.asarray(kernels[following.readers[0]]) != 0
            outputs = read.any(-1).reshape(-1, following.size).any(0).sum()
        else:
            outputs = following.size
        assert kept[layer_name(path)] == used.sum() * outputs


def test_record_is_in_flops(workdir, cost):
    lines = runs.metrics(workdir, "prune")
    for line in lines:
        compression = line["compression"]
        assert compression["unit"] == "FLOPs"
        assert compression["target"] == cost.target_share(TARGET)
        assert cost.total * compression["target"] / 2 < compression["kept"] <= cost.total
        assert set(line["rates"]) == {"conv2", "dense1", "dense2"}
    assert lines[-1]["compression"]["loss"] < lines[0]["compression"]["loss"]


def test_the_network_loads_and_its_page_tells_of_flops(workdir):
    logits_fn, metadata = harp_jax.load(workdir)
    assert metadata["stage"] == "prune"
    test = load("digits", seed=0, validation_examples=150).test
    correct = np.asarray(logits_fn(to_unit(jnp.asarray(test.images))).argmax(-1)) == test.labels
    (row,) = runs.results(workdir)["rows"]
    assert correct.mean() == pytest.approx(row["natural"])
    page = (workdir / "report" / "index.html").read_text()
    assert f"<td>{100 * row['flops'] / row['total_flops']:.1f} %</td>" in page
    assert "target channels" in page
    assert jax.tree.leaves(checkpoint.load(workdir / "prune")["scores"])[0].ndim == 1
