"""Promise: the numbers do not depend on how a batch is cut over devices."""

import jax
import networks
import numpy as np
import pytest

from harp_jax import models
from harp_jax.attacks import PGD
from harp_jax.data import augment, load, train_batches
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import tree_of_leaves
from harp_jax.training import optim, parallel
from harp_jax.training import state as train_state
from harp_jax.training.step import OBJECTIVES, make_train_step

STEPS, BATCH, PER_EPOCH = 3, 64, 20


def variables(mode):
    return networks.tiny("weight" if mode == "harp" else None)


def make_step(mode, device_count):
    """The compiled step on so many devices, and its first state."""
    start = variables(mode)
    gradient = None
    if mode == "harp":
        sizes = tree_of_leaves(parameter_costs(start["params"]))
        gradient = add_compression_gradient(sizes, 0.2, networks.MINIMUM, 0.1, PER_EPOCH)
    optimizer = optim.optimizer(lambda _: 0.1, 0.9, 5e-4, gradient)
    step = make_train_step(
        models.create("tiny", 10, axis_name=parallel.AXIS),
        OBJECTIVES["pgd"],
        PGD(0.1, 0.025, steps=3),
        optimizer,
        mode,
        lambda images, keys: augment(images, keys, crop_padding=1, flip=True),
        PER_EPOCH,
    )
    devices = parallel.local_devices(device_count)
    step = parallel.parallel(step, devices, donate_argnums=(0,))
    state = parallel.replicate(train_state.create(start, mode, optimizer, seed=0), devices)
    return step, state, devices


def after_three_steps(mode, device_count, dataset):
    step, state, _ = make_step(mode, device_count)
    batches = train_batches(dataset.train, seed=0, epoch=0, batch_size=BATCH, devices=device_count)
    for _, batch in zip(range(STEPS), batches, strict=False):
        state = step(state, batch)
    return parallel.to_host(state)


@pytest.mark.parametrize("mode", ["pretrain", "harp"])
def test_same_parameters_on_1_2_and_4_devices(mode):
    dataset = load("digits", seed=0, validation_examples=150)
    one, two, four = (after_three_steps(mode, count, dataset) for count in (1, 2, 4))
    assert one.sums["examples"] == STEPS * BATCH
    start = jax.tree.leaves(variables(mode))
    moved = [
        np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one.variables), start, strict=True)
    ]
    assert max(moved) > 0.01
    for count, other in ((2, two), (4, four)):
        apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.variables, other.variables)
        largest = max(jax.tree.leaves(apart))
        loss = abs(one.sums["loss"] - other.sums["loss"]) / (STEPS * BATCH)
        print(f"{mode}, {count} devices: parameters {largest:.1e}, mean loss {loss:.1e} apart")
        assert largest < 2e-5
        assert loss < 1e-6
        assert one.sums["correct"] == other.sums["correct"]


@pytest.fixture
def compiled():
    """Grows with every program that is compiled."""
    programs = []

    def count(event, _, **names):
        if event.endswith("backend_compile_duration"):
            programs.append(names)

    jax.monitoring.register_event_duration_secs_listener(count)
    yield programs
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.mark.parametrize("device_count", [1, 4])
def test_a_step_is_compiled_once(device_count, compiled):
    """Not again for the state that it returned, nor for the sums of a new epoch."""
    dataset = load("digits", seed=0, validation_examples=150)
    step, state, devices = make_step("pretrain", device_count)
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
