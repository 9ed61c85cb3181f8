"""Which layers share channels, and that they stay together."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest

from harp_jax import models
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import channels, sparsity
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import bake, layer_name, leaves_by_path, rates_of, tree_of_leaves
from harp_jax.pruning.masks import channel_mask
from harp_jax.training import optim

SHAPES = {name: row.shape for name, row in networks.ROWS.items()}
SMALL = ResNet(10, stages=(1, 1), width=4)
small = functools.cache(lambda: channels.trace(SMALL, (8, 8, 1)))


def names(paths):
    return list(map(layer_name, paths))


@pytest.mark.parametrize("name", ["tiny", "cnn", "vgg16_bn"])
def test_a_chain_has_a_writer_and_a_reader_for_every_group(name):
    architecture = channels.trace(models.create(name, 10), SHAPES[name])
    paths = [layer.path for layer in architecture.layers]
    assert [group.readers for group in architecture.prunable] == [(path,) for path in paths[1:]]
    assert [group.writers for group in architecture.prunable] == [(path,) for path in paths[:-1]]
    for layer, group in zip(architecture.layers, architecture.prunable, strict=False):
        assert group.size == layer.kernel[-1]  # also where feature maps are flattened
    images, classes = architecture.groups[0], architecture.groups[-1]
    assert (images.size, images.readers, images.prunable) == (SHAPES[name][-1], (paths[0],), False)
    assert (classes.size, classes.writers, classes.prunable) == (10, (paths[-1],), False)


def test_residual_joins_share_their_channels():
    architecture = channels.trace(models.create("resnet18", 10), SHAPES["resnet18"])
    groups = {tuple(names(group.readers)): group for group in architecture.prunable}
    assert len(groups) == 12  # 8 inside the blocks, 4 joins
    first = groups["conv2_1/conv1", "conv2_2/conv1", "conv3_1/conv1", "conv3_1/shortcut"]
    assert names(first.writers) == ["conv1", "conv2_1/conv2", "conv2_2/conv2"]
    last = groups["conv5_2/conv1", "dense1"]
    assert names(last.writers) == ["conv5_1/conv2", "conv5_1/shortcut", "conv5_2/conv2"]
    assert names(groups[("conv4_2/conv2",)].writers) == ["conv4_2/conv1"]
    readers = [path for group in architecture.groups for path in group.readers]
    writers = [path for group in architecture.groups for path in group.writers]
    paths = sorted(layer.path for layer in architecture.layers)
    assert sorted(readers) == paths
    assert sorted(writers) == paths


@pytest.mark.slow
def test_bottlenecks_share_their_channels():
    architecture = channels.trace(models.create("resnet50", 1000), (32, 32, 3))
    groups = {tuple(names(group.readers)): group for group in architecture.prunable}
    assert len(groups) == 1 + 2 * 16 + 4  # the stem, two inside each block, a join a stage
    assert names(groups["conv2_1/conv1", "conv2_1/shortcut"].writers) == ["conv1"]
    joined = groups[
        "conv3_2/conv1", "conv3_3/conv1", "conv3_4/conv1", "conv4_1/conv1", "conv4_1/shortcut"
    ]
    blocks = [f"conv3_{number}/conv3" for number in (1, 2, 3, 4)]
    assert sorted(names(joined.writers)) == sorted([*blocks, "conv3_1/shortcut"])
    assert joined.size == 512
    last = groups["conv5_2/conv1", "conv5_3/conv1", "dense1"]
    assert (last.size, len(last.writers)) == (2048, 4)
    assert names(groups[("conv4_6/conv3",)].writers) == ["conv4_6/conv2"]


@pytest.mark.slow
def test_bottlenecks_have_the_published_flops():
    layers = trace_layers(models.create("resnet50", 1000), (224, 224, 3))
    flops = sum(layer.flops for layer in layers)
    assert flops == pytest.approx(2 * 4.089e9, rel=1e-3)


class Mixing(nn.Module):
    """Two convolutions with something between them."""

    between: object

    @nn.compact
    def __call__(self, x, *, train=False):
        del train
        x = nn.Conv(4, (3, 3), name="conv1")(x)
        x = nn.Conv(4, (3, 3), name="conv2")(self.between(x))
        return x.mean((1, 2))


def test_activations_and_gates_between_layers_are_followed():
    between = lambda x: jax.nn.sigmoid(x) * jnp.tanh(x) + jax.nn.gelu(x)  # noqa: E731
    architecture = channels.trace(Mixing(between), (4, 4, 3))
    assert [names(group.readers) for group in architecture.prunable] == [["conv2"]]


@functools.cache
def pruned():
    """The small residual network with shared scores, all rates 0.5."""
    init = jax.jit(SMALL.init)
    dense = dict(init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    rates = {layer.path: 0.5 for layer in small().layers}
    return jax.jit(lambda tree: channels.make_prunable(tree, rates, 0.0, small()))(dense)


def test_scores_of_a_group_are_the_norms_of_all_that_read_it():
    variables = pruned()
    kernels, scores = (leaves_by_path(variables[name]) for name in ("params", "scores"))
    assert ("conv1", "kernel") not in scores  # it reads the images
    for group in small().prunable:
        norms = sum(
            np.abs(kernels[p]).sum((0, 1, 3) if kernels[p].ndim == 4 else 1) for p in group.readers
        )
        for path in group.readers:
            np.testing.assert_allclose(scores[path], np.sqrt(6) * norms / norms.max(), rtol=1e-5)


@pytest.mark.slow
def test_shared_leaves_stay_equal_to_the_bit_in_training():
    variables = pruned()
    trainable = {name: variables[name] for name in ("scores", "rates")}
    frozen = {name: variables[name] for name in ("params", "batch_stats", "minimum_rates")}
    images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1))
    share = channels.share_gradients(small())
    optimizer = optim.optimizer(lambda _: 0.1, 0.9, 5e-4, None, 1.0, share)

    def loss(trainable):
        plain = bake({**trainable, **frozen})
        return (SMALL.apply(plain, images, train=False) ** 2).mean()

    @jax.jit
    def step(trainable, state):
        gradient = jax.grad(loss)(trainable)
        updates, state = optimizer.update(gradient, state, trainable)
        return optax.apply_updates(trainable, updates), state

    state = jax.jit(optimizer.init)(trainable)
    for _ in range(3):
        trained, state = step(trainable, state)
        trainable = trained
    before, after = (leaves_by_path(tree) for tree in (variables["scores"], trainable["scores"]))
    rates = leaves_by_path(trainable["rates"])
    for group in small().prunable:
        first, *others = group.readers
        assert (before[first] != after[first]).any()
        for path in others:
            np.testing.assert_array_equal(after[path], after[first])
            assert rates[path] == rates[first]


def test_shared_gradient_is_that_of_one_leaf():
    share = channels.share_gradients(small())
    gradient = {"rates": tree_of_leaves(dict.fromkeys(leaves_by_path(pruned()["rates"]), 1.0))}
    shared, _ = share.update(gradient, share.init(gradient))
    by_path = leaves_by_path(shared["rates"])
    for group in small().prunable:
        assert {float(by_path[path]) for path in group.readers} == {len(group.readers)}


def test_compression_gradient_pulls_the_leaf_that_the_cost_reads():
    cost = channels.FlopsCost(small())
    gradient = jax.grad(cost.soft_share)(rates_of(pruned()))
    for group in small().prunable:
        assert gradient[group.readers[0]] > 0
        assert all(gradient[path] == 0 for path in group.readers[1:])


def test_channels_that_nobody_reads_make_no_difference():
    """What is counted as removed really is of no use: other values there change no logit."""
    variables, mask = pruned(), jax.jit(channel_mask)
    plain = jax.jit(bake)(variables)
    kernels = leaves_by_path(plain["params"])
    scores, rates = leaves_by_path(variables["scores"]), rates_of(variables)
    for group in small().prunable:
        unread = np.asarray(mask(scores[group.readers[0]], rates[group.readers[0]])) == 0
        assert unread.any()
        for path in group.writers:
            kernels[path] = np.where(unread, np.float32(7.0), kernels[path])
    changed = {**plain, "params": tree_of_leaves(kernels)}
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    apply = jax.jit(functools.partial(SMALL.apply, train=False))
    np.testing.assert_array_equal(apply(changed, images), apply(plain, images))


def test_sparsity_counts_what_the_small_network_has():
    variables, architecture = pruned(), small()
    rows = sparsity.layer_sparsity(variables, architecture)
    half = channels.trace(ResNet(10, stages=(1, 1), width=2), (8, 8, 1))
    kernels = {layer_name(layer.path): layer for layer in half.layers}
    for row in rows:
        assert row.kept == np.prod(kernels[row.layer].kernel)
        assert row.kept_flops == kernels[row.layer].flops
    assert sum(row.flops for row in rows) == channels.FlopsCost(architecture).total
    cost = channels.FlopsCost(architecture)
    assert sum(row.kept_flops for row in rows) == cost.kept(rates_of(variables))
    assert rows[0].layer == "conv1"
    assert rows[0].rate is None


def test_flattened_features_of_a_channel_are_masked_together():
    architecture = channels.trace(models.create("tiny", 10), SHAPES["tiny"])
    init = jax.jit(models.create("tiny", 10).init)
    dense = init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rates = {layer.path: 0.25 for layer in architecture.layers}
    variables = jax.jit(lambda v: channels.make_prunable(v, rates, 0.0, architecture))(dense)
    assert variables["scores"]["dense1"]["kernel"].shape == (16,)
    kernel = np.asarray(jax.jit(bake)(variables)["params"]["dense1"]["kernel"]).reshape(4, 16, 32)
    kept = (kernel != 0).any(2)
    np.testing.assert_array_equal(kept.sum(0), [4 if any(column) else 0 for column in kept.T])
    assert kept[0].sum() == 4
