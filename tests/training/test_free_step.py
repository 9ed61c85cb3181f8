"""Free-AT in the loop: what counts batches, what counts updates, what a stop leaves unchanged."""

import jax
import networks
import numpy as np
import pytest
import runs
from etils import epath

from harp_jax import models, parallel
from harp_jax.checkpoint import StageCheckpoints
from harp_jax.config.sections import minimum_rate
from harp_jax.data import load
from harp_jax.evaluation.accuracy import Score
from harp_jax.pruning import schemes
from harp_jax.run import recipe
from harp_jax.training import loop, metrics, optim, state
from harp_jax.workdir import read_metrics

BATCHES, EPOCHS, REPLAYS, DEVICES = 3, 3, 2, 2
STOP_AFTER = 4  # in the second epoch


class Stage:
    """Pruning on a few digits, without measuring accuracies; all runs share a compiled step."""

    def __init__(self):
        self.config = runs.digits(**{"prune.loss": "free", "free.replays": REPLAYS})
        self.config.prune.epochs = EPOCHS
        count = BATCHES * self.config.batch_size
        self.dataset = load("digits", seed=0, validation_examples=10, train_examples=count)
        model = models.create("tiny", 10, axis_name=parallel.AXIS)
        self.scheme = schemes.scheme(model, self.dataset.image_shape, "weight")
        self.stage = recipe.make_stage(
            self.config, "prune", self.scheme, BATCHES, networks.tiny("weight")
        )
        self.devices = parallel.local_devices(DEVICES)
        self.step = parallel.parallel(recipe.make_step(self.stage, model), self.devices)

    def start(self):
        return state.create(self.stage, networks.tiny("weight"), self.dataset.image_shape)

    def describe(self, state):
        target, minimum = self.config.prune.target, minimum_rate(self.config)
        return metrics.of_pruning(state, cost=self.scheme.cost, target=target, minimum=minimum)

    def fit(self, directory, stop_after=None):
        """Trains in a folder; gives the state at the end as it was saved."""
        plan = loop.Plan(
            devices=self.devices,
            checkpoint_every_steps=0,
            describe=self.describe,
            stop_requested=lambda step: step == stop_after,
        )
        half = lambda *_: Score(0.5, 0.5)  # noqa: E731
        programs = loop.Programs(self.step, bake=lambda tree: tree, natural=half, robust=half)
        loop.fit(self.stage, plan, self.start(), programs, self.dataset, directory)
        return self.saved(directory)

    def saved(self, directory):
        checkpoints = StageCheckpoints(directory / "checkpoints")
        start = self.start()
        found = checkpoints.restore_last(start.variables, start.training())
        checkpoints.close()
        assert found is not None
        return start.replace(variables=found[0], **found[1])


@pytest.fixture(scope="module")
def stage():
    return Stage()


@pytest.fixture(scope="module")
def whole(stage, tmp_path_factory):
    """The folder and the last state of a run that nobody stopped."""
    directory = epath.Path(tmp_path_factory.mktemp("whole"))
    return directory, stage.fit(directory)


def assert_same_bits(one, other):
    apart = jax.tree.map(np.array_equal, one, other)
    assert all(jax.tree.leaves(apart)), apart


@pytest.mark.slow
def test_a_run_stopped_within_an_epoch_ends_in_the_same_bits(stage, whole, tmp_path):
    tmp_path = epath.Path(tmp_path)
    with pytest.raises(loop.InterruptedRunError):
        stage.fit(tmp_path, stop_after=STOP_AFTER)
    stopped = stage.saved(tmp_path)
    assert stopped.step == STOP_AFTER
    assert np.mean(stopped.perturbation != 0) > 0.1
    ended = stage.fit(tmp_path)
    assert ended.step == EPOCHS * BATCHES
    assert_same_bits(ended, whole[1])


def test_an_epoch_begins_without_a_perturbation_and_only_an_epoch_does(stage, whole):
    images = stage.dataset.train.images[:64].reshape(DEVICES, 32, 8, 8, 1)
    labels = stage.dataset.train.labels[:64].reshape(DEVICES, 32)
    batch = {"images": images, "labels": labels, "index": np.arange(64).reshape(DEVICES, 32)}
    state = whole[1]
    assert np.mean(state.perturbation != 0) > 0.1

    def after(step, perturbation):
        before = state.replace(step=np.int32(step), perturbation=perturbation)
        return parallel.to_host(stage.step(parallel.replicate(before, stage.devices), batch))

    zeros = np.zeros_like(state.perturbation)
    assert_same_bits(after(BATCHES, state.perturbation), after(BATCHES, zeros))
    one, other = (after(BATCHES + 1, each).perturbation for each in (state.perturbation, zeros))
    assert np.mean(one != other) > 0.1


def test_learning_rate_and_gamma_follow_epochs_not_replays(stage, whole):
    directory, state = whole
    rows = read_metrics(directory / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9]
    gamma0 = stage.config.prune.gamma0
    weights = [row["compression"]["gamma"] for row in rows]
    assert weights == pytest.approx([gamma0, 2 * gamma0, 3 * gamma0])
    base = stage.config.prune.learning_rate
    rates = [float(optim.cosine(epoch, base, EPOCHS)) for epoch in range(EPOCHS)]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    counts = {
        int(count)
        for path, count in jax.tree.leaves_with_path(state.opt_state)
        if "count" in jax.tree_util.keystr(path)
    }
    assert counts == {REPLAYS * BATCHES * EPOCHS}
    assert float(stage.stage.learning_rate(REPLAYS * BATCHES)) == pytest.approx(rates[1])
