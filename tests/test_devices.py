"""Promise: the numbers do not depend on how a batch is cut over devices."""

import collections
import os
import subprocess
import sys
import types

import jax
import networks
import numpy as np
import pytest
import runs

from harp_jax import models, parallel
from harp_jax.attacks import PGD
from harp_jax.data import augment, load, train_batches
from harp_jax.losses import Free
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import tree_of_leaves
from harp_jax.run import experiment, recipe
from harp_jax.training import optim
from harp_jax.training import state as train_state

STEPS, BATCH, PER_EPOCH = 3, 64, 20


def variables(mode):
    return networks.tiny("weight" if mode == "harp" else None)


def augmented(images, keys):
    return augment(images, keys, crop_padding=1, flip=True)


def make_step(mode, device_count, loss="pgd"):
    """The compiled step on so many devices, and its first state."""
    start = variables(mode)
    gradient = None
    if mode == "harp":
        sizes = tree_of_leaves(parameter_costs(start["params"]))
        gradient = add_compression_gradient(sizes, 0.2, networks.MINIMUM, 0.1, PER_EPOCH)
    optimizer = optim.optimizer(lambda _: 0.1, 0.9, 5e-4, gradient)
    model = models.create("tiny", 10, axis_name=parallel.AXIS)
    loss, attack = (Free(2), PGD(0.1, 0.1)) if loss == "free" else (loss, PGD(0.1, 0.025, steps=3))
    stage = networks.stage(
        mode, loss, optimizer, PER_EPOCH, attack, augment=augmented, batch_size=BATCH
    )
    step = recipe.make_step(stage, model)
    devices = parallel.local_devices(device_count)
    step = parallel.parallel(step, devices, donate_argnums=(0,))
    state = train_state.create(stage, start, (8, 8, 1))
    state = parallel.replicate(state, devices)
    return step, state, devices


def after_three_steps(mode, device_count, dataset, loss):
    step, state, _ = make_step(mode, device_count, loss)
    batches = train_batches(dataset.train, seed=0, epoch=0, batch_size=BATCH, devices=device_count)
    for _, batch in zip(range(STEPS), batches, strict=False):
        state = step(state, batch)
    return parallel.to_host(state)


@pytest.mark.parametrize(
    ("mode", "loss", "counts"),
    [
        ("harp", "pgd", (4,)),
        pytest.param("harp", "pgd", (2,), marks=pytest.mark.slow),
        pytest.param("pretrain", "pgd", (2, 4), marks=pytest.mark.slow),
        pytest.param("pretrain", "free", (2, 4), marks=pytest.mark.slow),
    ],
)
def test_same_parameters_on_one_and_on_several_devices(mode, loss, counts):
    dataset = load("digits", seed=0, validation_examples=150)
    one = after_three_steps(mode, 1, dataset, loss)
    assert one.sums["examples"] == STEPS * BATCH
    start = jax.tree.leaves(variables(mode))
    moved = [
        np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one.variables), start, strict=True)
    ]
    assert max(moved) > 0.01
    for count in counts:
        other = after_three_steps(mode, count, dataset, loss)
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.variables, other.variables)
        largest = max(jax.tree.leaves(apart))
        losses = abs(one.sums["loss"] - other.sums["loss"]) / (STEPS * BATCH)
        print(f"{mode}, {count} devices: parameters {largest:.1e}, mean loss {losses:.1e} apart")
        assert largest < 2e-5
        assert losses < 1e-6
        assert one.sums["correct"] == other.sums["correct"]
        if loss == "free":  # rounding may give a gradient near zero the other sign
            assert np.mean(one.perturbation != 0) > 0.5
            assert np.mean(one.perturbation != other.perturbation) < 1e-3


@pytest.fixture
def compiled():
    """Grows with every program that is compiled; what other tests compiled is forgotten."""
    jax.clear_caches()
    programs = []

    def count(event, _, **names):
        if event.endswith("backend_compile_duration"):
            programs.append(names)

    jax.monitoring.register_event_duration_secs_listener(count)
    yield programs
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.mark.parametrize("device_count", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_step_is_compiled_once(device_count, compiled):
    """Not again for the state that it returned, nor for the sums of a new epoch."""
    dataset = load("digits", seed=0, validation_examples=150)
    step, state, devices = make_step("harp", device_count)
    batches = train_batches(dataset.train, seed=0, epoch=0, batch_size=BATCH, devices=device_count)
    ready = parallel.prefetch(batches, devices)
    state = step(state, next(ready))
    sums = parallel.replicate(train_state.zero_sums(), devices)
    assert compiled != []
    compiled.clear()
    state = step(state, next(ready))
    state = step(state.replace(sums=sums), next(ready))
    assert compiled == []
    assert parallel.to_host(state).step == 3


@pytest.mark.parametrize(
    ("number", "limit", "expected"),
    [(64, 2, 2), (64, 12, 8), (120, 7, 6), (121, 8, 1), (7, 7, 7), (5, 1, 1)],
)
def test_largest_divisor(number, limit, expected):
    assert parallel.largest_divisor(number, limit) == expected


CORES = parallel.largest_divisor(32, parallel.usable_cores())


def test_a_cpu_has_a_device_for_each_core():
    program = (
        "import jax; from harp_jax import parallel;"
        "parallel.one_device_per_core([96, 64]);"
        "print(jax.local_device_count())"
    )
    command, environment = [sys.executable, "-c", program], runs.environment()
    assert int(subprocess.check_output(command, env=environment, timeout=120)) == CORES


@pytest.mark.parametrize(
    ("limit", "flags", "already", "expected"),
    [
        (None, "", -1, CORES),
        (1, "", -1, 1),
        (1000, "", -1, CORES),
        (2, "", -1, min(2, CORES)),
        (None, "--xla_force_host_platform_device_count=3", -1, None),
        (None, "", 5, None),  # from JAX_NUM_CPU_DEVICES
    ],
)
def test_a_number_of_devices_that_somebody_says_is_kept(
    limit, flags, already, expected, monkeypatch
):
    asked = {}
    config = types.SimpleNamespace(jax_num_cpu_devices=already, update=asked.__setitem__)
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setenv("XLA_FLAGS", flags)
    parallel.one_device_per_core([96, 64], limit)
    assert asked.get("jax_num_cpu_devices") == expected
    assert os.environ["XLA_FLAGS"].endswith(flags)


@pytest.mark.slow
def test_a_run_compiles_each_program_once(compiled, tmp_path):
    """Not again for another epoch; and what measures accuracy, not for another stage."""
    config = runs.digits(
        **{
            "pretrain.epochs": 2,
            "prune.epochs": 2,
            "finetune.epochs": 2,
            "stages": ("pretrain", "prune", "finetune", "evaluate"),
        }
    )
    experiment.run(config, tmp_path)
    count = collections.Counter(names["fun_name"] for names in compiled)
    print(count)
    # Mapped over devices: three training steps, accuracies on clean images and under three attacks
    # (one of them also that of validation), masks applied to a dense and to a pruned network.
    assert count["jit(_fun)"] == 3 + 4 + 2
