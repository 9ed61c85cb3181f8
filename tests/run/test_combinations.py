"""Every network with every loss and granularity through the command line, from digits to a table.

Takes hours on two cores, much of it compilation: `pytest -m hours`.
"""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import runs

from harp_jax import checkpoint, models
from harp_jax.data import load, to_unit
from harp_jax.losses import LOSSES
from harp_jax.pruning.channels import FlopsCost, trace
from harp_jax.pruning.layers import bake
from harp_jax.pruning.scores import GRANULARITIES

pytestmark = [pytest.mark.slow, pytest.mark.hours]

TARGETS = {"weight": 0.2, "channel": 0.6}
TEST_IMAGES = 200
# Ten classes guessed at random are right in 10 % of 200 images, and in 20 % once in 50,000 times.
ABOVE_CHANCE = 0.2


def command(workdir, temporary, model, loss, stages, **more):
    row = networks.row(model)
    fields = {
        "model": model,
        "loss": loss,
        "devices": 1,
        "batch_size": 32,
        "data.pad_to": row.padded,
        "data.train_examples": 640,
        "data.validation_examples": 64,
        "data.test_examples": TEST_IMAGES,
        "attack.epsilon": 0.02,
        "attack.step_size": 0.02,
        "attack.steps": 1,
        "free.replays": 2,
        "pretrain.epochs": 4,
        "pretrain.learning_rate": 0.03,
        "prune.epochs": 1,
        "prune.learning_rate": 0.03,
        "finetune.epochs": 1,
        "evaluate.batch_size": 64,
        "evaluate.run": "()",
        "stages": stages,
        **row.settings,
        **row.settings_by_loss.get(loss, {}),
        **more,
    }
    settings = [f"--config.{name}={value}" for name, value in fields.items()]
    return runs.command(workdir, *settings, runs.cache_option(temporary))


def call(*arguments, **more):
    done = runs.call(command(*arguments, **more), seconds=1800)
    assert done.returncode == 0, done.stderr


def pretrained(temporary, model, loss):
    """The checkpoint of the dense network, which both granularities start from."""
    workdir = runs.shared(temporary) / f"dense_{model}_{loss}"
    if not (workdir / "pretrain" / "result").exists():
        call(workdir, temporary, model, loss, ("pretrain",))
    return workdir / "pretrain"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", networks.DISTINCT)
def test_a_whole_run(model, loss, granularity, tmp_path, tmp_path_factory):
    temporary, target = tmp_path_factory.getbasetemp(), TARGETS[granularity]
    fields = {
        "prune.source": pretrained(temporary, model, loss),
        "prune.granularity": granularity,
        "prune.target": target,
        "prune.initial_rate": target,
    }
    call(tmp_path, temporary, model, loss, ("prune", "finetune", "evaluate"), **fields)
    rows = {row["stage"]: row for row in runs.results(tmp_path)["rows"]}
    assert list(rows) == ["prune", "finetune"]
    assert rows["finetune"]["natural"] > ABOVE_CHANCE
    network, data = models.create(model, 10), load("digits", seed=0, validation_examples=64)
    size = networks.row(model).padded
    check_budget(rows["finetune"], network, size, granularity)
    check_baked(network, tmp_path, data.test.images[:8], size)


def check_budget(row, network, size, granularity):
    if granularity == "weight":
        assert 0.9 * TARGETS["weight"] < row["parameters"] / row["total"] <= TARGETS["weight"]
    else:
        cost = FlopsCost(trace(network, (size, size, 1)))
        allowed = cost.target_share(TARGETS["channel"]) * cost.total
        assert 0.8 * allowed < row["flops"] <= allowed


def check_baked(network, workdir, images, size):
    """The network with its masks applied once is the one that masks as it runs."""
    variables = checkpoint.load(workdir)
    del variables["metadata"]
    around = (size - 8) // 2
    images = np.pad(images, ((0, 0), (around, around), (around, around), (0, 0)))
    apply = jax.jit(network.apply)
    masked = apply(variables, to_unit(jnp.asarray(images)))
    baked = apply(jax.jit(bake)(variables), to_unit(jnp.asarray(images)))
    np.testing.assert_allclose(baked, masked, rtol=1e-5, atol=1e-5)
