"""Two steps of every kind of training against the authors', by the production step itself."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
import torch_layout
from flax.traverse_util import flatten_dict
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import parallel
from harp_jax.models.convnet import ConvNet
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import bake, tree_of_leaves
from harp_jax.training import optim, stages, state
from harp_jax.training.step import make_train_step

START = torch_layout.below(torch_layout.golden("net_losses"), "init")
ARRAYS = torch_layout.golden("sgd_steps")
BATCH, STEPS = 8, 2
TARGET, MINIMUM = 0.1, 0.01
GAMMA = 0.04  # the authors' fourth epoch, (3 + 1) * 0.01
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
ABSOLUTE = 1e-6

IMAGES = torch_layout.images(ARRAYS["x"]).reshape(STEPS, BATCH, 16, 16, 3)
LABELS = ARRAYS["y"].astype(np.int32).reshape(STEPS, BATCH)
MODEL = ConvNet(num_classes=10, widths=(16, 32), hidden=64, axis_name=parallel.AXIS)
MODES = {
    "pretrain": "pretrain",
    "score_prune": "score",
    "harp_prune": "harp",
    "harp_finetune": "finetune",
}


@dataclasses.dataclass(frozen=True)
class StoredAttack:
    """Gives the authors' adversarial images for the batch that it is asked about."""

    adversarial: Any
    epsilon: float = 8 / 255
    norm: str = "linf"

    def __call__(self, logits_fn, images, labels, key):
        first = (images == IMAGES[0]).all()
        return jnp.where(first, self.adversarial[0], self.adversarial[1])


def variables(pruned):
    tree = torch_layout.convnet(START)
    if not pruned:
        return {name: tree[name] for name in ("params", "batch_stats")}
    minima = jax.tree.map(lambda _: np.float32(MINIMUM), tree["rates"])
    return {**tree, "minimum_rates": minima}


def optimizer(mode, params):
    compression = None
    if mode == "harp":
        costs = tree_of_leaves(parameter_costs(params))
        compression = add_compression_gradient(
            costs, TARGET, MINIMUM, GAMMA, updates_per_epoch=STEPS
        )
    schedule = optim.learning_rate("step", LEARNING_RATE, epochs=20, updates_per_epoch=STEPS)
    return optim.optimizer(schedule, MOMENTUM, WEIGHT_DECAY, compression)


def extra_pass(variables, images):
    """The authors' extra clean pass of every step; it changes BatchNorm's running statistics."""
    plain = bake(variables)
    _, changed = MODEL.apply(plain, images, train=True, mutable=["batch_stats"])
    return {**variables, "batch_stats": changed["batch_stats"]}


def momenta(opt_state):
    """The momentum buffers by path."""
    is_trace = lambda node: isinstance(node, optax.TraceState)  # noqa: E731
    traces = [x for x in jax.tree.leaves(opt_state, is_leaf=is_trace) if is_trace(x)]
    buffers = {}
    for trace in traces:
        for name, group in trace.trace.items():
            if not isinstance(group, optax.MaskedNode):
                buffers |= flatten_dict({name: group})
    return buffers


def check_variables(ours, theirs, start, steps):
    """Compares all that the authors recorded after a step; the rest must not have moved."""
    changed = flatten_dict(torch_layout.convnet(theirs))
    for path, value in flatten_dict(ours).items():
        before = flatten_dict(start)[path]
        if path not in changed:
            assert_array_equal(value, before, err_msg=str(path))
            continue
        expected = changed[path]
        if path[-1] == "var":
            averaged = torch_layout.CONVNET_AVERAGED[path[1]]
            expected = torch_layout.biased_variance(expected, before, averaged, 2 * steps)
        value = torch_layout.stored_outputs(path, value)
        assert_allclose(value, expected, rtol=1e-6, atol=ABSOLUTE, err_msg=str(path))
    return changed


@pytest.fixture(scope="module")
def devices():
    return parallel.local_devices(1)


@pytest.fixture(scope="module")
def passing(devices):
    return parallel.parallel(extra_pass, devices)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("pretrain", "nat"),
        ("pretrain", "pgd"),
        ("harp_prune", "pgd"),
        ("harp_finetune", "pgd"),
        # Scores with fixed rates, and masks without an attack: parts of the cases above.
        pytest.param("score_prune", "pgd", marks=pytest.mark.slow),
        pytest.param("harp_prune", "nat", marks=pytest.mark.slow),
    ],
)
def test_two_steps(devices, passing, name, objective):
    mode, arrays = MODES[name], torch_layout.below(ARRAYS, f"{name}/{objective}")
    adversarial = IMAGES
    if objective == "pgd":
        adversarial = [torch_layout.images(arrays[f"x_adv{step}"]) for step in range(STEPS)]
    start = variables(pruned=mode != "pretrain")
    sgd = optimizer(mode, start["params"])
    stage = networks.stage(
        mode,
        "natural" if objective == "nat" else "pgd",
        sgd,
        STEPS,
        StoredAttack(adversarial),
        augment=lambda images, keys: images,
    )
    train_step = parallel.parallel(make_train_step(stage, MODEL), devices)
    current = parallel.replicate(state.create(stage, start), devices)
    for step in range(STEPS):
        batch = {"images": IMAGES[step], "labels": LABELS[step], "index": np.arange(BATCH)}
        batch = jax.tree.map(lambda x: x[None], batch)
        current = current.replace(variables=passing(current.variables, batch["images"]))
        current = train_step(current, batch)
        theirs = torch_layout.below(arrays, f"step{step + 1}")
        host = parallel.to_host(current)
        changed = check_variables(host.variables, theirs, start, step + 1)
        trained, _ = stages.split(start, stage.trains)
        assert {path for path in changed if path[0] != "batch_stats"} == set(flatten_dict(trained))
    expected = flatten_dict(torch_layout.convnet(torch_layout.below(arrays, "momentum")))
    buffers = momenta(host.opt_state)
    assert buffers.keys() == set(flatten_dict(trained))
    for path, buffer in expected.items():
        assert_allclose(buffers[path], buffer, rtol=1e-5, atol=1e-5, err_msg=str(path))
