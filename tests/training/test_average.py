"""The moving average of the weights: its numbers, and where a stage uses it."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import runs
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from harp_jax import models, parallel
from harp_jax.checkpoint import StageCheckpoints
from harp_jax.data import load
from harp_jax.evaluation.accuracy import Score
from harp_jax.pruning import schemes
from harp_jax.pruning.layers import bake
from harp_jax.run import recipe
from harp_jax.training import loop, state
from harp_jax.training.average import momentary_decay, moved

BATCHES, EPOCHS, DECAY = 3, 2, 0.9
decays = st.floats(0, 1, width=32, exclude_max=True)
few = settings(max_examples=50, deadline=None, derandomize=True)
steps = st.integers(0, 10**6)


@few
@given(decays, steps)
def test_early_steps_forget_faster_and_none_slower_than_asked(decay, step):
    now, later = (float(momentary_decay(decay, jnp.int32(n))) for n in (step, step + 1))
    assert 0 <= now <= later <= np.float32(decay)
    assert now == pytest.approx(min(decay, (1 + step) / (10 + step)), rel=1e-6)


@few
@given(st.floats(-100, 100, width=32), st.floats(-100, 100, width=32), decays)
def test_an_average_moves_between_the_old_and_the_new_value(old, new, decay):
    found = float(moved(jnp.float32(old), jnp.float32(new), jnp.float32(decay)))
    rounding = 1e-6 * max(abs(old), abs(new), 1e-30)
    assert min(old, new) - rounding <= found <= max(old, new) + rounding
    if new == 0:
        assert found == 0  # of a weight that is dropped or begins
    else:
        assert found == pytest.approx(decay * old + (1 - decay) * new, rel=1e-5, abs=10 * rounding)


@few
@given(st.floats(-100, 100, width=32), decays)
def test_the_average_of_what_stays_is_that(value, decay):
    value = jnp.float32(value)
    assert moved(value, value, jnp.float32(decay)) == value


class Finetune:
    """Finetuning a pruned network on a few digits; accuracies are made up."""

    def __init__(self, average, devices=1, loss="pgd"):
        fields = {"finetune.average": average, "finetune.epochs": EPOCHS, "attack.steps": 1}
        self.config = runs.digits(**fields, **{"finetune.loss": loss, "free.replays": 2})
        count = BATCHES * self.config.batch_size
        self.dataset = load("digits", seed=0, validation_examples=10, train_examples=count)
        model = models.create("tiny", 10, axis_name=parallel.AXIS)
        self.variables = networks.tiny("weight")
        scheme = schemes.scheme(model, self.dataset.image_shape, "weight")
        self.stage = recipe.make_stage(self.config, "finetune", scheme, BATCHES, self.variables)
        self.devices = parallel.local_devices(devices)
        self.step = parallel.parallel(recipe.make_step(self.stage, model), self.devices)

    def start(self):
        return state.create(self.stage, self.variables, self.dataset.image_shape)

    def states(self, count=3):
        """The replicated states after each of the first steps."""
        found, number = [parallel.replicate(self.start(), self.devices)], len(self.devices)
        for place in range(count):
            at = slice(64 * place, 64 * (place + 1))
            shape = (number, 64 // number)
            images = self.dataset.train.images[at].reshape(*shape, 8, 8, 1)
            labels = self.dataset.train.labels[at].reshape(shape)
            batch = {"images": images, "labels": labels, "index": np.arange(64).reshape(shape)}
            found.append(self.step(found[-1], batch))
        return found

    def fit(self, directory, stop_after=None):
        """Trains in a folder; gives the outcome, the last state saved, what was validated."""
        seen = []

        def bake_and_look(variables):
            seen.append(parallel.to_host(variables))
            return variables

        plan = loop.Plan(
            devices=self.devices,
            checkpoint_every_steps=0,
            describe=lambda _: {},
            stop_requested=lambda step: step == stop_after,
        )
        half = lambda *_: Score(0.5, 0.5)  # noqa: E731
        programs = loop.Programs(self.step, bake=bake_and_look, natural=half, robust=half)
        outcome = loop.fit(self.stage, plan, self.start(), programs, self.dataset, directory)
        return outcome, self.saved(directory), seen

    def saved(self, directory):
        checkpoints, start = StageCheckpoints(directory / "checkpoints"), self.start()
        found = checkpoints.restore_last(start.variables, start.training())
        checkpoints.close()
        assert found is not None
        return start.replace(variables=found[0], **found[1])


@pytest.fixture(scope="module")
def averaged():
    return Finetune(DECAY)


@pytest.fixture(scope="module")
def whole(averaged, tmp_path_factory):
    return averaged.fit(epath.Path(tmp_path_factory.mktemp("whole")))


def assert_same_bits(one, other):
    apart = jax.tree.map(np.array_equal, one, other)
    assert all(jax.tree.leaves(apart)), apart


@pytest.mark.parametrize("loss", ["pgd", pytest.param("free", marks=pytest.mark.slow)])
def test_steps_average_the_plain_weights_and_leave_them_alone(loss, averaged):
    averaged = averaged if loss == "pgd" else Finetune(DECAY, loss=loss)
    with_it, without = (
        [parallel.to_host(each) for each in of.states()]
        for of in (averaged, Finetune(0, loss=loss))
    )
    expected = {name: with_it[0].variables[name] for name in ("params", "batch_stats")}
    assert_same_bits(with_it[0].average, expected)
    for step, (now, plain) in enumerate(zip(with_it[1:], without[1:], strict=True)):
        decay = np.float32(min(DECAY, (1 + step) / (10 + step)))
        values = {name: now.variables[name] for name in expected}
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, values)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), now.average, expected
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6),
            now.variables,
            plain.variables,
        )
        assert plain.average is None


def test_the_averaged_network_is_validated_kept_and_handed_on(whole):
    outcome, last, seen = whole
    assert outcome.epoch == 0  # the first of equally good ones
    assert_same_bits(outcome.variables, seen[0])
    assert_same_bits(last.network(), seen[-1])
    assert not np.array_equal(
        last.network()["params"]["conv1"]["kernel"], last.variables["params"]["conv1"]["kernel"]
    )
    for name in ("scores", "rates", "minimum_rates"):
        assert_same_bits(last.network()[name], last.variables[name])
    one, other = (
        np.asarray(jax.jit(bake)(of)["params"]["conv2"]["kernel"] != 0)
        for of in (last.network(), last.variables)
    )
    assert np.array_equal(one, other)
    assert 0 < one.sum() < one.size


def test_a_run_stopped_within_an_epoch_ends_in_the_same_bits(averaged, whole, tmp_path):
    tmp_path = epath.Path(tmp_path)
    with pytest.raises(loop.InterruptedRunError):
        averaged.fit(tmp_path, stop_after=BATCHES + 1)
    outcome, last, _ = averaged.fit(tmp_path)
    assert_same_bits(last, whole[1])
    assert_same_bits(outcome.variables, whole[0].variables)


@pytest.mark.slow
def test_all_devices_have_the_same_average(averaged):
    last, alone = Finetune(DECAY, devices=2).states()[-1], averaged.states()[-1]
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf[0], leaf[1]), last.average)
    one, other = (
        jax.tree.map(lambda leaf: np.asarray(leaf[0]), of.average) for of in (last, alone)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), one, other)


def test_without_an_average_a_state_and_its_checkpoint_have_none():
    start = Finetune(0).start()
    assert "average" not in start.training()
    assert start.network() == start.variables
