"""The loop over the steps, apart from what a step computes."""

import subprocess
import sys

import runs

# A long epoch of short steps, of which the host would be far ahead, on two devices that wait for
# each other twice a step. XLA aborts the process if they wait for 30 s.
PROGRAM = """
import sys
import jax, jax.numpy as jnp, numpy as np
from etils import epath
from jax import lax
from harp_jax.data import load
from harp_jax.training import loop, parallel
from harp_jax.training.accuracy import Score
from harp_jax.training.state import TrainState, zero_sums

def step(state, batch):
    x = state.variables["x"]
    y = lax.fori_loop(0, 3, lambda i, v: jnp.tanh(v @ x), state.variables["y"])
    y = y + 1e-6 * lax.psum(y.sum(), parallel.AXIS) + 1e-6 * lax.psum(y.max(), parallel.AXIS)
    sums = {**state.sums, "examples": state.sums["examples"] + 2}
    return state.replace(step=state.step + 1, variables={"x": 0.999 * x, "y": y}, sums=sums)

devices = parallel.local_devices()
assert len(devices) == 2
dataset = load("digits", seed=0, validation_examples=10)
state = TrainState(
    step=np.int32(0), key=np.zeros(2, np.uint32), opt_state=(), sums=zero_sums(),
    variables={name: np.ones((300, 300), np.float32) for name in "xy"},
)
plan = loop.Plan(
    stage="pretrain", epochs=1, steps_per_epoch=len(dataset.train) // 2, batch_size=2, seed=0,
    devices=devices, learning_rate=lambda _: 0.1, checkpoint_every_steps=0,
    chosen_by="robust", describe=lambda _: {}, stop_requested=lambda _: False,
)
programs = loop.Programs(
    train_step=parallel.parallel(step, devices, donate_argnums=(0,)),
    bake=lambda variables: variables,
    natural=lambda *_: Score(0.5, 0.5), robust=lambda *_: Score(0.5, 0.5),
)
outcome = loop.fit(plan, state, programs, dataset, epath.Path(sys.argv[1]))
print("ended", outcome.epoch, outcome.variables["x"].shape)
"""
FLAGS = (
    "--xla_force_host_platform_device_count=2"
    " --xla_cpu_collective_call_terminate_timeout_seconds=30"
)


def test_devices_that_wait_for_each_other_do_not_wait_for_ever(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env=runs.environment(XLA_FLAGS=FLAGS),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "ended 0 (300, 300)"
