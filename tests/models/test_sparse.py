"""Sparse networks against the masked dense ones: logits, gradients and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from harp_jax import models, native
from harp_jax.models.resnet import ResNet
from harp_jax.models.sparse import SparseNetwork, fastest, kept_weights
from harp_jax.ops import sparse_conv
from harp_jax.ops.sparse_conv import Kept
from harp_jax.pruning.layers import kernel_paths, leaves_by_path, make_prunable, tree_of_leaves

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")

KERNEL = ("layers_1", "kernel")


class Odd(nn.Module):
    """Biases, VALID, groups and dilation, which no network of the package has; no BatchNorm."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), padding="VALID", name="valid")(x))
        x = nn.relu(nn.Conv(4, (2, 2), strides=2, padding="SAME", name="even")(x))
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="groups")(x)
        x = nn.relu(nn.Conv(4, (3, 3), kernel_dilation=2, name="dilated")(x))
        return nn.Dense(5, name="dense")(x).mean((1, 2))


NETWORKS = {
    "tiny": (models.create("tiny", 5), (8, 8, 1)),
    "residual": (ResNet(5, stages=(1, 1), width=4), (8, 8, 3)),
    "odd": (Odd(), (9, 8, 3)),
}


def masked(name, rate=0.3):
    """Variables of a network with masked random weights."""
    model, shape = NETWORKS[name]
    variables = dict(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape))))
    generator, leaves = np.random.default_rng(0), leaves_by_path(variables["params"])
    for path in kernel_paths(variables["params"]):
        leaves[path] = leaves[path] * (generator.random(leaves[path].shape) < rate)
    return {**variables, "params": tree_of_leaves(leaves)}


def assert_close(found, expected, atol=1e-5):
    def check(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol * max(1, np.abs(other).max()))

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize(
    ("name", "train"),
    [
        pytest.param("tiny", False, marks=pytest.mark.slow),
        ("residual", True),
        ("odd", False),  # whatever is trained: it has no BatchNorm
        pytest.param("tiny", True, marks=pytest.mark.slow),
        pytest.param("residual", False, marks=pytest.mark.slow),
    ],
)
def test_logits_gradients_and_statistics_are_those_of_the_masked_network(name, train):
    (model, shape), variables = NETWORKS[name], masked(name)
    images = jax.random.uniform(jax.random.key(1), (20, *shape))
    labels = jnp.arange(20) % 5

    def loss(network, params, images):
        options = {"train": train, "mutable": ["batch_stats"]}
        logits, changed = network.apply({**variables, "params": params}, images, **options)
        values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return values.mean(), (logits, changed)

    kept = kept_weights(variables["params"])
    assert kept.keys() == set(kernel_paths(variables["params"]))
    found, expected = (
        jax.jit(jax.value_and_grad(loss, (1, 2), has_aux=True), static_argnums=0)(
            network, variables["params"], images
        )
        for network in (SparseNetwork(model, kept), model)
    )
    assert_close(found[0], expected[0])
    (of_params, of_images), (dense_params, dense_images) = found[1], expected[1]
    assert_close(of_images, dense_images)
    leaves, dense = leaves_by_path(of_params), leaves_by_path(dense_params)
    dead = 0
    for path, gradient in dense.items():
        weights = leaves_by_path(variables["params"])[path]
        sparse = path in kept and path[0] not in ("groups", "dilated")
        here = (weights != 0) if sparse else np.ones_like(weights, bool)
        assert_close(leaves[path], gradient * here)
        dead += ((gradient != 0) & ~here).sum()
    assert dead > 0


class ByPlace(nn.Module):
    """Gives BatchNorm its flag by place; its last layer multiplies in bfloat16."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(name="norm")(x, not train))
        return nn.Dense(5, dtype=jnp.bfloat16, name="dense")(x.reshape(len(x), -1))


def test_flags_by_place_and_types_of_a_layer_s_own_stay():
    model, images = ByPlace(), jax.random.uniform(jax.random.key(1), (20, 8, 8, 3))
    variables = model.init(jax.random.key(0), images)
    sparse = SparseNetwork(model, kept_weights(variables["params"]))
    found, expected = (each.apply(variables, images) for each in (sparse, model))
    assert found.dtype == expected.dtype == jnp.bfloat16
    assert_close(jnp.float32(found), jnp.float32(expected), atol=1e-2)


def pruned(width=320):
    """A network of one layer with 16 inputs for each weight that is kept, one of them 0."""
    network = nn.Sequential([lambda x, train=False: x.reshape(len(x), -1), nn.Dense(width)])
    variables = make_prunable(
        network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))), {KERNEL: 1 / 16}, 0.0, "weight"
    )
    kernel = leaves_by_path(variables["params"])[KERNEL]
    zeroed = kernel.at[jnp.unravel_index(jnp.abs(kernel).argmax(), kernel.shape)].set(0.0)
    params = {**leaves_by_path(variables["params"]), KERNEL: zeroed}
    return network, {**variables, "params": tree_of_leaves(params)}


def test_a_weight_that_is_kept_and_0_is_computed():
    network, variables = pruned()
    form = fastest(network, variables)
    assert isinstance(form, SparseNetwork)
    assert len(form.kept[KERNEL].index) == 64 * 320 / 16
    values = form.kept[KERNEL].values(
        variables["params"]["layers_1"]["kernel"].reshape(1, 1, 64, 320)
    )
    assert (values == 0).sum() == 1
    assert fastest(network, variables).digest == form.digest


def test_networks_stay_as_they_are_where_sparse_ones_do_not_pay():
    network, variables = pruned()
    dense = {"params": {"layers_1": {"kernel": jnp.ones((64, 320))}}}
    whole = {**variables, "rates": jax.tree.map(lambda _: 10.0, variables["rates"])}
    for given in (dense, whole):
        assert fastest(network, given) is network
    small, variables = pruned(width=100)
    assert fastest(small, variables) is small


@pytest.mark.parametrize(
    ("shape", "share", "expected"),
    [
        ((3, 3, 512, 512), 0.09, True),
        ((3, 3, 512, 512), 0.11, False),
        ((3, 3, 16, 32), 0.3, True),
        ((3, 3, 16, 32), 0.5, False),
        ((3, 3, 64, 64), 0.0, True),
    ],
)
def test_it_pays_with_few_weights(shape, share, expected):
    number = round(share * np.prod(shape))
    index = np.stack(np.unravel_index(np.arange(number), shape), axis=1).astype(np.int32)
    assert sparse_conv.pays(Kept(shape, index)) == expected
