"""S2AP: the perturbed scores and the step's gradient at them, against their definition."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax import losses, parallel
from harp_jax.data import to_unit
from harp_jax.methods.sharpness import ascend
from harp_jax.pruning.layers import bake, kernel_paths, leaves_by_path, make_prunable
from harp_jax.training import state as train_state
from harp_jax.training.step import make_train_step

SHARPNESS = 0.3
BATCH = {
    "images": np.random.default_rng(0).integers(0, 256, (1, 16, 8, 8, 1), np.uint8),
    "labels": (np.arange(16, dtype=np.int32) % 10)[None],
    "index": np.arange(16)[None],
}


def test_every_layer_moves_along_its_gradient_by_its_share():
    rng = np.random.default_rng(0)
    scores = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5), "c": np.ones(2)}
    gradient = {"a": rng.standard_normal((3, 4)), "b": 1e-9 * rng.standard_normal(5)}
    gradient["c"] = np.zeros(2)
    scores, gradient = (jax.tree.map(jnp.float32, tree) for tree in (scores, gradient))
    moved = ascend(scores, gradient, SHARPNESS)
    for name in "ab":
        step = np.asarray(moved[name] - scores[name]).ravel()
        along = np.asarray(gradient[name]).ravel()
        assert_allclose(np.linalg.norm(step), SHARPNESS * np.linalg.norm(scores[name]), rtol=1e-5)
        assert step @ along == pytest.approx(np.linalg.norm(step) * np.linalg.norm(along), rel=1e-5)
    assert_array_equal(moved["c"], scores["c"])
    jax.tree.map(assert_array_equal, ascend(scores, gradient, 0.0), scores)


class Network(nn.Module):
    """Two dense layers with a BatchNorm between them."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(8, name="dense1")(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, name="norm1")(x)
        return nn.Dense(10, name="dense2")(nn.relu(x))


@jax.jit
def make_pruned():
    variables = Network().init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    return make_prunable(
        variables, dict.fromkeys(kernel_paths(variables["params"]), 0.4), 0.02, "weight"
    )


def after_a_step(variables, move):
    """The state after a step whose optimiser only remembers the gradient."""
    remember = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda updates, state, params: (jax.tree.map(jnp.zeros_like, updates), updates),
    )

    stage = networks.stage("harp", "natural", remember, 10, ascend=move)
    step = make_train_step(stage, Network())
    devices = parallel.local_devices(1)
    state = parallel.replicate(train_state.create(stage, variables), devices)
    return parallel.to_host(parallel.parallel(step, devices)(state, BATCH))


@jax.jit
def expected_gradient(variables, scores):
    """Of the training loss of the batch, at other scores."""
    images, labels = to_unit(jnp.asarray(BATCH["images"][0])), jnp.asarray(BATCH["labels"][0])

    def loss(trained):
        plain = bake({**variables, **trained})
        logits, _ = Network().apply(plain, images, train=True, mutable=["batch_stats"])
        return losses.natural(logits, labels)

    return jax.grad(loss)({"scores": scores, "rates": variables["rates"]})


def assert_near(found, wanted):
    for path, leaf in leaves_by_path(wanted).items():
        assert_allclose(leaves_by_path(found)[path], leaf, rtol=1e-4, atol=1e-6, err_msg=str(path))


def test_the_step_takes_the_gradient_at_the_perturbed_scores():
    pruned = make_pruned()
    plain = after_a_step(pruned, None)
    here = expected_gradient(pruned, pruned["scores"])
    assert_near({name: plain.opt_state[name] for name in here}, here)
    after = after_a_step(pruned, functools.partial(ascend, sharpness=SHARPNESS))
    moved = ascend(pruned["scores"], here["scores"], SHARPNESS)
    there = expected_gradient(pruned, moved)
    assert_near({name: after.opt_state[name] for name in there}, there)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), here, there)
    assert max(jax.tree.leaves(apart)) > 0.01
    # What is measured, and what stays, belongs to the scores as they are.
    for name in ("variables", "sums"):
        jax.tree.map(assert_array_equal, getattr(after, name), getattr(plain, name))
