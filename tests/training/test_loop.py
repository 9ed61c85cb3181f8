"""The loop over the steps, apart from what a step computes."""

import json
import subprocess
import sys

import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
import runs
from etils import epath
from jax import lax

from harp_jax import checkpoint, parallel
from harp_jax.data import load
from harp_jax.evaluation.accuracy import Score
from harp_jax.training import loop
from harp_jax.training.state import TrainState, zero_sums

# A long epoch of short steps, of which the host would be far ahead, on two devices that wait for
# each other twice a step. XLA aborts the process if they wait for 30 s.
PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
sys.path.insert(0, sys.argv[2])
import networks
from etils import epath
from jax import lax
from harp_jax.data import load
from harp_jax.training import loop
from harp_jax import parallel
from harp_jax.evaluation.accuracy import Score
from harp_jax.training.state import TrainState, zero_sums

def step(state, batch):
    x = state.variables["x"]
    y = lax.fori_loop(0, 3, lambda i, v: jnp.tanh(v @ x), state.variables["y"])
    y = y + 1e-6 * lax.psum(y.sum(), parallel.AXIS) + 1e-6 * lax.psum(y.max(), parallel.AXIS)
    sums = {**state.sums, "examples": state.sums["examples"] + 2}
    return state.replace(step=state.step + 1, variables={"x": 0.999 * x, "y": y}, sums=sums)

devices = parallel.local_devices()
assert len(devices) == 2
dataset = load("digits", seed=0, validation_examples=10, train_examples=1000)
state = TrainState(
    step=np.int32(0), key=np.zeros(2, np.uint32), opt_state=(), sums=zero_sums(),
    variables={name: np.ones((300, 300), np.float32) for name in "xy"},
)
stage = networks.stage("pretrain", "pgd", optax.identity(), len(dataset.train) // 2, batch_size=2)
plan = loop.Plan(
    devices=devices, checkpoint_every_steps=0, describe=lambda _: {},
    stop_requested=lambda _: False,
)
programs = loop.Programs(
    train_step=parallel.parallel(step, devices, donate_argnums=(0,)),
    bake=lambda variables: variables,
    natural=lambda *_: Score(0.5, 0.5), robust=lambda *_: Score(0.5, 0.5),
)
outcome = loop.fit(stage, plan, state, programs, dataset, epath.Path(sys.argv[1]))
print("ended", outcome.epoch, outcome.variables["x"].shape)
"""
FLAGS = (
    "--xla_force_host_platform_device_count=2"
    " --xla_cpu_collective_call_terminate_timeout_seconds=30"
)


@pytest.mark.slow
def test_devices_that_wait_for_each_other_do_not_wait_for_ever(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(runs.ROOT / "tests")],
        env=runs.environment(XLA_FLAGS=FLAGS),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "ended 0 (300, 300)"


STEPS, ACCURACIES = 4, (0.5, 0.9, 0.7, 0.6)  # in an epoch; of the epochs, on validation data


class KilledError(Exception):
    """Instead of a kill: nothing is saved any more."""


def fit(
    directory,
    stop_after=None,
    kill_after=None,
    checkpoint_every_steps=0,
    loss=lambda step: step,
    weight=lambda step: 1.0,
    not_finite=0,
    minutes=0.0,
):
    """Four epochs of a step that counts; gives the outcome and the record without its times.

    `loss` and `weight` are those of a step, from its number; `not_finite` is of validation.
    """

    def step(state, batch):
        examples = lax.psum(batch["labels"].size, parallel.AXIS)
        sums = {**state.sums, "examples": state.sums["examples"] + examples}
        sums["loss"] = sums["loss"] + loss(state.step)
        bad = (sums["bad_step"] < 0) & ~jnp.isfinite(sums["loss"])
        sums["bad_step"] = jnp.where(bad, state.step, sums["bad_step"])
        weights = jnp.full_like(state.variables["w"], weight(state.step))
        variables = {"steps": state.variables["steps"] + 1, "w": weights}
        return state.replace(step=state.step + 1, variables=variables, sums=sums)

    def stop_requested(done):
        if done == kill_after:
            raise KilledError
        return done == stop_after

    def robust(variables, *_):
        done = int(parallel.to_host(variables)["steps"])
        return Score(ACCURACIES[done // STEPS - 1], 0.5, not_finite=not_finite)

    devices = parallel.local_devices(1)
    epochs = len(ACCURACIES)
    stage = networks.stage(
        "pretrain", "pgd", optax.identity(), STEPS, epochs=epochs, batch_size=300
    )
    plan = loop.Plan(
        devices=devices,
        checkpoint_every_steps=checkpoint_every_steps,
        describe=lambda _: {},
        stop_requested=stop_requested,
        checkpoint_minutes=minutes,
    )
    programs = loop.Programs(
        train_step=parallel.parallel(step, devices),
        bake=lambda variables: variables,
        natural=lambda *_: Score(0.5, 0.5),
        robust=robust,
    )
    state = TrainState(
        step=np.zeros((), np.int32),
        key=np.zeros(2, np.uint32),
        opt_state=(),
        sums=zero_sums(),
        variables={"steps": np.zeros((), np.int32), "w": np.ones(3, np.float32)},
    )
    dataset = load("digits", seed=0, validation_examples=10)
    outcome = loop.fit(stage, plan, state, programs, dataset, epath.Path(directory))
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "images_per_second", "data_wait", "checksum")
    rows = [{k: v for k, v in json.loads(line).items() if k not in timing} for line in lines]
    return (outcome.epoch, int(outcome.variables["steps"])), rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    found = fit(tmp_path_factory.mktemp("undisturbed"))
    assert found[0] == (1, 8)
    assert [row["validation"]["robust"] for row in found[1]] == list(ACCURACIES)
    losses = [row["train"]["loss"] for row in found[1]]
    np.testing.assert_allclose(losses, [6 / 1200, 22 / 1200, 38 / 1200, 54 / 1200], rtol=1e-6)
    return found


# After the first step, within an epoch, at its end, at the end of all; the others are slow.
STOPS = [
    pytest.param(step, marks=() if step in (1, 6, 8, 16) else pytest.mark.slow)
    for step in range(1, 1 + STEPS * len(ACCURACIES))
]


@pytest.mark.parametrize("stop_after", STOPS)
def test_a_run_stopped_after_any_step_ends_as_one_that_was_not(stop_after, undisturbed, tmp_path):
    with pytest.raises(loop.InterruptedRunError, match=f"after step {stop_after};"):
        fit(tmp_path, stop_after=stop_after)
    assert fit(tmp_path) == undisturbed


@pytest.mark.parametrize("every", [1, 2, STEPS])
def test_a_killed_run_ends_as_one_that_was_not(every, undisturbed, tmp_path):
    with pytest.raises(KilledError):
        fit(tmp_path, kill_after=10, checkpoint_every_steps=every)
    assert fit(tmp_path, checkpoint_every_steps=every) == undisturbed


# The last update of the second epoch, and one in its middle that the next step does not see.
@pytest.mark.parametrize(("bad", "every", "good"), [(7, 0, 4), (5, 2, 4), (0, 1, None)])
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_an_update_that_is_not_finite_is_never_saved(bad, every, good, value, tmp_path):
    def weight(step):
        return jnp.where(step == bad, value, 1.0)

    text = f"w is not finite after epoch {bad // STEPS}, step {bad}; last good checkpoint: "
    text += "none" if good is None else f"step {good}"
    with pytest.raises(loop.TrainingDivergedError, match=f"^pretrain: {text} in "):
        fit(tmp_path, checkpoint_every_steps=every, weight=weight)
    for folder in (tmp_path / "checkpoints").iterdir():
        for step in folder.iterdir():
            assert np.isfinite(checkpoint.load(step)["w"]).all()


def test_losses_whose_sum_is_not_finite_stop_the_run(tmp_path):
    with pytest.raises(loop.TrainingDivergedError, match="the loss is not finite in epoch 0"):
        fit(tmp_path, loss=lambda step: jnp.float32(3e38))


def test_logits_of_validation_that_are_not_finite_stop_the_run(tmp_path):
    said = "validation, robust: the logits of 3 of 10 images are not finite after epoch 0, step 3"
    with pytest.raises(loop.TrainingDivergedError, match=said):
        fit(tmp_path, not_finite=3)
    assert not list((tmp_path / "checkpoints" / "best").iterdir())


def steps(directory, name="last"):
    """The checkpoints of a stage, the newest last."""
    return sorted((directory / "checkpoints" / name).iterdir(), key=lambda step: int(step.name))


@pytest.mark.parametrize(("minutes", "last"), [(1e-9, "9"), (60.0, "8"), (0.0, "8")])
def test_a_checkpoint_is_saved_inside_an_epoch_when_its_minutes_are_over(
    minutes, last, undisturbed, tmp_path
):
    with pytest.raises(KilledError):
        fit(tmp_path, kill_after=10, minutes=minutes)
    assert steps(tmp_path)[-1].name == last
    assert fit(tmp_path, minutes=minutes) == undisturbed


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_with_damaged_checkpoints_ends_as_one_without(
    all_of_them, undisturbed, tmp_path, caplog
):
    with pytest.raises(KilledError):
        fit(tmp_path, kill_after=10, checkpoint_every_steps=3)
    damaged = steps(tmp_path)[0 if all_of_them else -1 :]
    for step in damaged:
        (step / "training" / "manifest.ocdbt").write_bytes(b"")
    with caplog.at_level("WARNING", logger="harp_jax"):
        assert fit(tmp_path) == undisturbed
    (line,) = (text for text in caplog.messages if "is damaged" in text)
    assert "the start of the stage: 9 steps" in line if all_of_them else "step 8: 1 steps" in line


@pytest.mark.slow
def test_a_damaged_best_network_costs_the_epochs_since_the_one_before(
    undisturbed, tmp_path, caplog
):
    assert fit(tmp_path) == undisturbed
    (steps(tmp_path, "best")[-1] / "variables" / "manifest.ocdbt").write_bytes(b"")
    assert fit(tmp_path) == undisturbed
    (line,) = (text for text in caplog.messages if "is damaged" in text)
    assert "best/8: is damaged" in line
    assert fit(tmp_path) == undisturbed
