"""Networks that compute in bfloat16: close to float32, and what stays float32."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from harp_jax import models, parallel
from harp_jax.attacks import PGD
from harp_jax.data import load
from harp_jax.losses import natural
from harp_jax.models.bottleneck import BottleneckResNet
from harp_jax.pruning import channels
from harp_jax.training import optim
from harp_jax.training import state as train_state
from harp_jax.training.step import make_train_step

NORMALIZATION = ((0.3,), (0.4,))


def equations(jaxpr):
    """All equations of a program, inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def logits_and_gradients(model, variables, images, *, train):
    """(logits, (gradients of the images and of the parameters))."""

    def loss(images, params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
        )
        return natural(logits, jnp.arange(len(images)) % 10), logits

    gradients, logits = jax.grad(loss, argnums=(0, 1), has_aux=True)(images, variables["params"])
    return logits, gradients


def distance(one, other):
    """Length of the difference, relative to the other."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.mark.parametrize("name", ["tiny", pytest.param("cnn", marks=pytest.mark.slow)])
def test_logits_and_gradients_are_close_to_float32s(name):
    exact, rounded = (
        models.create(name, 10, normalization=NORMALIZATION, dtype=dtype)
        for dtype in models.COMPUTE_DTYPES
    )
    images = jnp.asarray(
        np.random.default_rng(0).random((32, *networks.row(name).shape)), jnp.float32
    )
    variables = jax.jit(exact.init)(jax.random.key(0), images)
    results = [
        jax.jit(functools.partial(logits_and_gradients, model, train=False))(variables, images)
        for model in (exact, rounded)
    ]
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    distances = jax.tree.map(distance, results[1], results[0])
    print(name, jax.tree.map(lambda x: f"{x:.1e}", distances))
    # Roundings of 2^-9 = 0.002 add up. Where they turn a ReLU or make pixels of a pooling window
    # equal, gradients take another way: float32 with features so rounded is as far from float32.
    logits, gradients = distances
    assert 1e-3 < logits < 0.02
    assert max(jax.tree.leaves(gradients)) < 0.3


def test_every_product_of_a_training_pass_is_of_bfloat16():
    model, variables = models.create("tiny", 10, dtype="bfloat16"), networks.tiny()
    program = jax.make_jaxpr(functools.partial(logits_and_gradients, model, train=True))(
        variables, jnp.zeros((4, 8, 8, 1))
    )
    products = [
        [operand.aval.dtype for operand in equation.invars]
        for equation in equations(program.jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) == 4 * 3  # forward, and the gradients of inputs and kernels
    assert {dtype for operands in products for dtype in operands} == {jnp.dtype("bfloat16")}


def make_step(mode, dtype):
    """(step under a mapped axis of length 1, its first state, a batch of digits)."""
    optimizer = optim.optimizer(lambda _: 0.1, 0.9, 5e-4)
    stage = networks.stage(mode, "pgd", optimizer, 10, PGD(0.1, 0.025, steps=3))
    step = make_train_step(stage, models.create("tiny", 10, axis_name=parallel.AXIS, dtype=dtype))
    variables = networks.tiny("weight" if mode == "harp" else None)
    split = load("digits", seed=0, validation_examples=150).train
    batch = {"images": split.images[:64], "labels": split.labels[:64], "index": np.arange(64)}
    start = (train_state.create(stage, variables), batch)
    return jax.vmap(step, axis_name=parallel.AXIS), *jax.tree.map(lambda x: x[None], start)


@pytest.mark.parametrize("mode", ["pretrain", "harp"])
def test_a_step_leaves_all_of_the_state_in_its_types(mode):
    step, state, batch = make_step(mode, "bfloat16")
    after = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(
        lambda leaf: leaf.dtype, state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(after.variables)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_a_step_has_the_loss_and_statistics_of_float32():
    states = {}
    for dtype in models.COMPUTE_DTYPES:
        step, start, batch = make_step("pretrain", dtype)
        states[dtype] = jax.jit(step)(start, batch)
    exact, rounded = (states[dtype] for dtype in models.COMPUTE_DTYPES)
    assert rounded.sums["loss"] != exact.sums["loss"]
    np.testing.assert_allclose(rounded.sums["loss"], exact.sums["loss"], rtol=0.01)
    for name, before in start.variables["batch_stats"].items():
        moved = [
            jax.tree.map(np.subtract, state.variables["batch_stats"][name], before)
            for state in (rounded, exact)
        ]
        assert max(jax.tree.leaves(jax.tree.map(distance, *moved))) < 0.02


def test_adversarial_images_are_float32_in_the_ball():
    model = models.create("tiny", 10, dtype="bfloat16")
    network = jax.jit(models.logits_fn(model, networks.tiny()))
    images = jnp.asarray(np.random.default_rng(0).random((16, 8, 8, 1)), jnp.float32)
    labels = jnp.arange(16) % 10
    attack = jax.jit(functools.partial(PGD(0.031, 0.0078, steps=5), network))
    adversarial = attack(images, labels, jax.random.key(0))
    assert adversarial.dtype == jnp.float32
    change = np.abs(adversarial - images).max()
    assert 0.03 < change <= 0.031 + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert natural(network(adversarial), labels) > natural(network(images), labels)


def test_channels_are_found_in_any_type():
    network = functools.partial(BottleneckResNet, 10, stages=(2, 1), width=4)
    normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    exact = channels.trace(network(), (16, 16, 3))
    rounded = network(dtype=jnp.dtype("bfloat16"), normalization=normalization)
    assert channels.trace(rounded, (16, 16, 3)) == exact
    assert len(exact.prunable) > 3


def test_types_that_networks_do_not_compute_in():
    with pytest.raises(ValueError, match="dtype='float16': allowed are float32, bfloat16"):
        models.create("tiny", 10, dtype="float16")
