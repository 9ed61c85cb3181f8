"""Groups of channels in networks of all kinds: which are found, and which stay whole."""

import flax.linen as nn
import foreign_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_networks

from harp_jax import export
from harp_jax.export.unread import without_unread
from harp_jax.pruning import channels
from harp_jax.pruning.costs import trace_layers
from harp_jax.pruning.layers import layer_name, leaves_by_path, tree_of_leaves
from harp_jax.pruning.live import by_unit, live_weights
from harp_jax.pruning.schemes import scheme, stays_dense

SHAPE = (8, 8, 1)


class Two(nn.Module):
    """Two convolutions with something between them, and a dense layer that reads the second."""

    between: object

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="conv1")(x)
        x = nn.relu(nn.Conv(6, (3, 3), name="conv2")(self.between(x)))
        return nn.Dense(3, name="dense")(x.mean((1, 2)))


def readers(architecture):
    return [[layer_name(path) for path in group.readers] for group in architecture.prunable]


def swapped(x):
    return x[..., jnp.array([0, 2, 1, 3, 4, 5])]


MIXING = {
    "softmax": nn.softmax,
    "layer norm": nn.LayerNorm(name="norm"),
    "group norm": nn.GroupNorm(2, name="norm"),
    "concatenation": lambda x: jnp.concatenate([x, jnp.zeros_like(x)], -1),
    "reversal": lambda x: x[..., ::-1],
    "swap": swapped,
    "part": lambda x: x[..., :3],
    "groups": nn.Conv(6, (3, 3), feature_group_count=2, name="grouped"),
    "multiplier": nn.Conv(12, (3, 3), feature_group_count=6, name="grouped"),
    "transposed": nn.ConvTranspose(6, (2, 2), name="up"),
    "threshold": lambda x: x + nn.Conv(6, (1, 1), name="side")(nn.relu(x - 9)),
    "blend": random_networks.Blend(),
    "up and gate": lambda x: x * nn.sigmoid(nn.ConvTranspose(6, (2, 2), name="up")(x)),
    "subset": lambda x: x.at[..., 2].add(x[..., 0]),
    "remat": nn.remat(nn.Dense)(6),
    "general": nn.Sequential([nn.DenseGeneral((2, 3)), lambda x: x.reshape(*x.shape[:3], 6)]),
}


@pytest.mark.parametrize("kind", MIXING)
def test_channels_that_mix_stay_whole(kind):
    architecture = channels.trace(Two(MIXING[kind]), SHAPE)
    assert readers(architecture) == [["dense"]]


ONE_BY_ONE = {
    "relu6": nn.relu6,
    "clip": lambda x: jnp.clip(x, -1, 1),
    "minimum": lambda x: jnp.minimum(x, jnp.roll(x, 1, axis=1)),
    "instance norm": nn.GroupNorm(num_groups=6, name="norm"),
    "gate": lambda x: (
        x * nn.sigmoid(nn.Conv(6, (1, 1), name="gate")(x.mean((1, 2), keepdims=True)))
    ),
    "negative": lambda x: nn.relu(x) + nn.Conv(6, (1, 1), name="gate")(nn.relu(-x)),
    "keyword": lambda x: nn.relu(x) + nn.Conv(6, (1, 1), name="gate")(inputs=x),
    "channels first": lambda x: nn.BatchNorm(True, axis=1, name="norm")(
        x.transpose(0, 3, 1, 2)
    ).transpose(0, 2, 3, 1),
    "average pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "depthwise": nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise"),
}


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_channels_that_are_read_one_by_one_are_pruned(kind):
    architecture = channels.joined(channels.trace(Two(ONE_BY_ONE[kind]), SHAPE))
    expected = ["conv2", "gate"] if kind in ("gate", "negative", "keyword") else ["conv2"]
    assert [sorted(names) for names in readers(architecture)] == [expected, ["dense"]]


def removed(group, params, numbers):
    """Params without what reads some channels of a group, in place, and which these are."""
    dropped = numbers.random(group.size) < 0.5
    for path in group.readers:
        kernel = params["params", *path]
        kept = by_unit(kernel, group.size) * ~dropped[None, :, None]
        params["params", *path] = np.float32(kept.reshape(kernel.shape))
    return dropped


SEEDS = [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 40))]


@pytest.mark.parametrize("seed", SEEDS)
def test_what_writes_removed_channels_of_random_networks_does_not_matter(seed):
    numbers = np.random.default_rng(seed)
    model = random_networks.Random(seed)
    variables = random_networks.drawn(model, seed)
    images = numbers.random((3, *random_networks.SHAPE), np.float32)
    logits = jax.jit(lambda variables: model.apply(variables, images))
    leaves = leaves_by_path(variables)
    groups = channels.joined(channels.trace(model, random_networks.SHAPE)).prunable
    dropped = [removed(group, leaves, numbers) for group in groups]
    masked, other = tree_of_leaves(leaves), dict(leaves)
    for group, units in zip(groups, dropped, strict=True):
        for path in group.writers:
            for array in (("params", *path), ("params", *path[:-1], "bias")):
                if array in other:
                    noise = numbers.normal(0, 1, other[array].shape) * (other[array] != 0)
                    other[array] = np.float32(other[array] + noise * units)
    expected = logits(masked)
    close = {"rtol": 1e-4, "atol": 1e-4 * float(np.abs(expected).max())}
    np.testing.assert_allclose(logits(tree_of_leaves(other)), expected, **close)
    silenced = without_unread(model, masked, random_networks.SHAPE)
    np.testing.assert_allclose(logits(silenced), expected, **close)
    small = export.compact(model, masked, images)
    np.testing.assert_allclose(jax.jit(small.logits_fn)(images), expected, **close)


class Again(nn.Module):
    """A BatchNorm that is called with the channels of two layers."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(True, name="norm")
        a = nn.Dense(4, name="a")(norm(nn.Conv(6, (1, 1), name="conv1")(x)))
        b = nn.Dense(4, name="b")(norm(nn.Conv(6, (1, 1), name="conv2")(x)))
        return nn.Dense(3, name="dense")((a + b).mean((1, 2)))


def test_layers_before_one_batch_norm_are_one_group():
    first, _ = channels.trace(Again(), SHAPE).prunable
    assert [*map(layer_name, first.writers)] == ["conv1", "conv2"]
    assert sorted(map(layer_name, first.readers)) == ["a", "b"]
    assert first.norms == (("norm",),)


class Learned(nn.Module):
    """A layer that reads an array of the network's own."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6, name="conv")(x.mean((1, 2)))
        position = nn.Dense(6, name="position")(self.param("array", nn.initializers.ones, (1, 5)))
        return nn.Dense(3, name="dense")(x + position)


def test_features_that_no_layer_writes_stay_whole():
    assert readers(channels.trace(Learned(), SHAPE)) == [["dense"]]


class Flat(nn.Module):
    """A BatchNorm over flattened features."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        return nn.Dense(3, name="dense")(nn.BatchNorm(True, name="norm")(x.reshape(len(x), -1)))


def test_unread_channels_are_silenced_through_a_batch_norm_of_features():
    variables = random_networks.drawn(Flat(), 0)
    kernel = variables["params"]["dense"]["kernel"].reshape(64, 6, 3)
    kernel[:, 2] = 0
    found = without_unread(Flat(), variables, random_networks.SHAPE)["params"]
    assert not found["conv"]["kernel"][..., 2].any()
    assert np.array_equal(found["norm"]["scale"] == 0, np.arange(64 * 6) % 6 == 2)


def test_depthwise_convolutions_belong_to_the_writers_of_their_group():
    model = foreign_networks.separable(10)
    apart = channels.trace(model, SHAPE)
    assert ["Conv_1"] in readers(apart)
    whole = channels.joined(apart)
    found = {
        tuple(map(layer_name, group.readers)): [*map(layer_name, group.writers)]
        for group in whole.prunable
    }
    assert found == {
        ("Conv_2",): ["Conv_0", "Conv_1"],
        ("Conv_4",): ["Conv_2", "Conv_3"],
        ("Conv_5", "Dense_0"): ["Conv_4", "Conv_7"],
        ("Conv_7",): ["Conv_5", "Conv_6"],
    }
    assert channels.joined(whole) == whole


class Beside(nn.Module):
    """A layer that is read directly, and normalised over its channels beside that."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(6, (1, 1), name="conv")(x)
        y = nn.Dense(6, name="after_norm")(nn.LayerNorm()(x))
        return nn.Dense(3, name="dense")((nn.Dense(6, name="direct")(x) + y).mean((1, 2)))


def test_normalisation_beside_another_reader_is_seen():
    found = channels.trace(Beside(), SHAPE).groups
    (group,) = [each for each in found if [*map(layer_name, each.writers)] == ["conv"]]
    assert not group.prunable


class Chain(nn.Module):
    """Two depthwise convolutions in a row, the second in a residual block of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (1, 1), name="conv")(x)
        x = nn.Conv(4, (3, 3), feature_group_count=4, name="first")(x)
        x = x + nn.Conv(4, (3, 3), feature_group_count=4, name="second")(x)
        return nn.Dense(3, name="dense")(x.mean((1, 2)))


def test_chains_of_depthwise_convolutions_are_one_group():
    (group,) = channels.joined(channels.trace(Chain(), SHAPE)).prunable
    assert [*map(layer_name, group.writers)] == ["conv", "first", "second"]
    assert [*map(layer_name, group.readers)] == ["dense"]


def test_flops_of_depthwise_convolutions_fall_with_their_channels():
    model = foreign_networks.separable(10)
    found = scheme(model, SHAPE, "channel")
    rates = dict.fromkeys(found.architecture.pruned, jnp.float32(0.5))
    flops = {  # 3x3 or 1x1 weights at 8x8 or 4x4 pixels, two FLOPs each
        "Conv_0": 9 * 1 * 8 * 64,
        "Conv_1": 9 * 8 * 64,
        "Conv_2": 8 * 16 * 64,
        "Conv_3": 9 * 16 * 16,
        "Conv_4": 16 * 16 * 16,
        "Conv_5": 16 * 24 * 16,
        "Conv_6": 9 * 24 * 16,
        "Conv_7": 24 * 16 * 16,
        "Dense_0": 16 * 10,
    }
    assert found.cost.kept(rates) == 2 * sum(flops.values())
    assert found.cost.soft_share(rates) == pytest.approx(
        found.cost.kept(rates) / found.cost.total, rel=1e-6
    )
    assert found.cost.kept(dict.fromkeys(rates, jnp.float32(1))) == found.cost.total


def test_live_weights_pass_depthwise_convolutions():
    model = Two(ONE_BY_ONE["depthwise"])
    groups = channels.trace(model, SHAPE).groups
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), variables["params"])
    params["between"]["kernel"][..., 0] = 0  # then conv1 writes in vain
    params["conv1"]["kernel"][..., 1] = 0  # then what follows has nothing to work on
    params["conv2"]["kernel"][:, :, 2] = 0  # then nothing before it is of use
    live = {layer_name(path): count for path, count in live_weights(params, groups).items()}
    assert live == {"conv1": 9 * 3, "between": 9 * 3, "conv2": 9 * 3 * 6, "dense": 6 * 3}


@pytest.mark.parametrize(
    ("granularity", "expected"),
    [
        ("weight", "1,280 of 3,552 weights stay dense, they are no layers of nn.Conv"),
        (
            "channel",
            "2,464 of 3,552 weights stay dense, they write or read no channels",
        ),
    ],
)
def test_what_stays_dense_is_said(granularity, expected):
    model = foreign_networks.attentive(10)
    found = scheme(model, SHAPE, granularity)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    text = stays_dense(found.architecture, params)
    assert text is not None
    assert expected in text
    assert "up" in text.split(": ")[1].split(", ")
    assert "position" in text
    assert ("attention/query" in text) == (granularity == "channel")
    assert "patches" not in text.split(": ")[1].split(", ")
    pruned = found.architecture.pruned
    ones = {"params": jax.tree.map(lambda leaf: jnp.ones(leaf.shape), params)}
    scores = found.make_prunable(ones, dict.fromkeys(pruned, 0.5), 0.0)["scores"]
    assert leaves_by_path(scores).keys() == set(pruned)


def test_flops_of_layers_of_several_axes():
    traced = trace_layers(foreign_networks.attentive(10), SHAPE)
    layers = {layer_name(layer.path): layer for layer in traced}
    tokens = 16
    for name in ("query", "key", "value", "out"):
        assert layers[f"attention/{name}"].flops == 2 * tokens * 16 * 16


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        layer = nn.Dense(8, name="again")
        return nn.Dense(3)(layer(layer(x.reshape(len(x), -1)[:, :8])))


class Mixed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.LayerNorm()(nn.Dense(8)(x.reshape(len(x), -1))))


def test_networks_that_cannot_be_pruned_are_refused():
    with pytest.raises(ValueError, match="'again' is called twice; allowed are layers called once"):
        scheme(Twice(), SHAPE, "weight")
    with pytest.raises(ValueError, match="granularity='channel': has no channels that layers read"):
        scheme(Mixed(), SHAPE, "channel")


class Stacked(nn.Module):
    """Two layers in one array, of `nn.scan`, between two ordinary ones."""

    @nn.compact
    def __call__(self, x, train=False):
        def body(layer, x, _):
            return nn.relu(layer(x)), None

        x = nn.Dense(8, name="first")(x.reshape(len(x), -1))
        stack = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = stack(nn.Dense(8, name="stack"), x, None)
        return nn.Dense(3, name="last")(x)


def test_stacked_kernels_stay_dense():
    found = scheme(Stacked(), SHAPE, "weight")
    assert [layer_name(path) for path in found.architecture.pruned] == ["first", "last"]
