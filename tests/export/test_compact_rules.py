"""The rules of compaction, one by one."""

import flax.linen as nn
import graphs
import numpy as np
import pytest


class Dense(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.widths[0], name="dense1")(x.reshape(len(x), -1))
        for number, width in enumerate(self.widths[1:], start=2):
            x = nn.Dense(width, name=f"dense{number}")(nn.relu(x))
        return x


def test_units_that_nothing_reads_are_left_out():
    graph = graphs.prepared(Dense((4, 2)), (2, 2, 1), dense2=np.diag([1, 1, 0, 0])[:, :2])
    widths, arrays = graphs.compacted(graph)
    assert widths == {"dense1": 2, "dense2": 2}
    assert arrays["dense1"]["kernel"].shape == (4, 2)


def test_what_units_carry_that_nothing_feeds_goes_into_the_next_bias():
    graph = graphs.prepared(Dense((3, 2)), (2, 2, 1), dense1=[[1, 0, 0]] * 4)
    widths, arrays = graphs.compacted(graph)
    assert widths == {"dense1": 1, "dense2": 2}
    np.testing.assert_allclose(arrays["dense2"]["bias"], [1 + 2, 1 + 2])  # relu(1) + relu(1) + 1


def test_removals_that_follow_from_others_are_found():
    graph = graphs.prepared(Dense((4, 3, 3, 2)), (2, 2, 1))
    graph.arrays["dense2"]["kernel"][...] = [[1, 0, 0]] + [[0, 1, 0]] * 3  # the third is constant
    graph.arrays["dense3"]["kernel"][1] = 0  # the second is not read, nor what it reads
    graph.arrays["dense3"]["kernel"][0, 1:] = 0  # and these two only the constant feeds
    widths, _ = graphs.compacted(graph)
    assert widths == {"dense1": 1, "dense2": 1, "dense3": 1, "dense4": 2}


def test_a_network_that_is_constant_keeps_a_unit_everywhere():
    graph = graphs.prepared(Dense((4, 3, 2)), (2, 2, 1), dense2=0)
    widths, arrays = graphs.compacted(graph)
    assert widths == {"dense1": 1, "dense2": 1, "dense3": 2}
    assert not arrays["dense1"]["kernel"].any()


class Convolutions(nn.Module):
    """Two convolutions, with a pool between them if it is named."""

    padding: tuple[int, int] = (1, 1)
    strides: int = 1
    pool: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="conv1")(x)
        x = nn.relu(x)
        if self.pool == "max":
            x = nn.max_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
        if self.pool == "average":
            x = nn.avg_pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))
        strides = (self.strides, self.strides)
        x = nn.Conv(2, (3, 3), strides, (self.padding, self.padding), name="conv2")(x)
        return nn.Dense(2, name="dense1")(x.reshape(len(x), -1))


ONE_FED = np.array([1.0, 0.0, 0.0, 0.0])  # of the outputs of conv1


def convolutions(*args, biases=(1.0, 2.0, 3.0, 4.0), **kwargs):
    graph = graphs.prepared(Convolutions(*args, **kwargs), (6, 6, 1), conv1=ONE_FED)
    (bias,) = [node for node in graph.readers("conv1") if node.op == "affine"]
    graph.arrays[bias.name]["bias"][...] = biases
    kernel = graph.arrays["dense1"]["kernel"]
    kernel[...] = np.random.default_rng(0).normal(size=kernel.shape)
    return graph


def test_one_constant_channel_carries_for_all_where_zeros_are_padded():
    widths, arrays = graphs.compacted(convolutions())
    assert widths["conv1"] == 2
    np.testing.assert_allclose(arrays["conv1"]["bias"], [1, 4])  # the largest carries
    np.testing.assert_allclose(arrays["conv2"]["kernel"][0, 0, 1], 1 + 2 / 4 + 3 / 4)
    # The tap in the middle never meets padding.
    np.testing.assert_allclose(arrays["conv2"]["kernel"][1, 1, 1], 0)
    np.testing.assert_allclose(arrays["conv2"]["bias"], 1 + 2 + 3 + 4)


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"padding": (0, 0)}, 1),  # VALID
        ({"padding": (1, 1), "strides": 2}, 2),  # taps of the first row and column meet padding
        ({"padding": (0, 1), "strides": 2}, 2),  # those of the last ones do
        ({"padding": (0, 0), "strides": 2}, 1),
        ({"biases": (1.0, -2.0, -3.0, 0.0)}, 1),  # zeros after the relu
        ({"biases": (1.0, -2.0, -3.0, 4.0)}, 2),
        ({"padding": (0, 0), "pool": "max"}, 1),  # pads with minus infinity
        ({"padding": (0, 0), "pool": "average"}, 4),  # pads with zeros: no constant
        ({"padding": (0, 0), "pool": "average", "biases": (1.0, -2.0, -3.0, 0.0)}, 1),
    ],
)
def test_constant_channels_and_padding(settings, width):
    widths, _ = graphs.compacted(convolutions(**settings))
    assert widths["conv1"] == width


def test_taps_that_never_meet_padding_go_into_the_bias():
    graph = convolutions(strides=2)
    kernel = graph.arrays["conv2"]["kernel"]
    kernel[0], kernel[:, 0] = 0, 0  # with stride 2 over 6 pixels, only these meet padding
    widths, _ = graphs.compacted(graph)
    assert widths["conv1"] == 1


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Dense(4, name="dense1")(x.reshape(len(x), -1)))
        y = nn.relu(nn.Dense(3, name="dense2")(x))
        x = x + nn.Dense(4, name="dense3")(y)
        return nn.Dense(2, name="dense4")(nn.relu(x))


def residual(**kernels):
    return graphs.prepared(Residual(), (2, 2, 1), **kernels)


def test_a_constant_unit_goes_if_it_is_constant_in_all_that_is_added():
    columns = np.array([0.0, 1.0, 1.0, 0.0])
    graph = residual(dense1=columns, dense3=[0.0, 0.0, 1.0, 0.0])
    widths, arrays = graphs.compacted(graph)
    assert widths == {"dense1": 2, "dense2": 3, "dense3": 2, "dense4": 2}
    np.testing.assert_allclose(arrays["dense4"]["bias"], 1 + 2 * (1 + 1))


def test_a_unit_goes_from_all_that_is_added_if_nothing_reads_the_sum():
    rows = np.array([[1.0], [0.0], [1.0], [1.0]])
    assert graphs.compacted(residual(dense4=rows))[0]["dense1"] == 4  # dense2 reads it
    widths, _ = graphs.compacted(residual(dense2=rows, dense4=rows))
    assert widths == {"dense1": 3, "dense2": 3, "dense3": 3, "dense4": 2}


def test_a_branch_that_is_constant_is_left_out():
    widths, arrays = graphs.compacted(residual(dense2=0))
    assert widths == {"dense1": 4, "dense4": 2}
    assert arrays.keys() - widths.keys() == {"add1"}  # what the branch carried
    np.testing.assert_allclose(arrays["add1"]["bias"], 3 + 1)
    graph = residual(dense3=0)
    for node in graph.readers("dense3"):
        graph.arrays[node.name]["bias"][...] = 0
    widths, arrays = graphs.compacted(graph)
    assert arrays.keys() == widths.keys() == {"dense1", "dense4"}


def test_widths_are_rounded_up_with_units_that_do_nothing():
    graph = graphs.prepared(Dense((12, 5, 2)), (2, 2, 1))
    graph.arrays["dense2"]["kernel"][3:] = 0
    graph.arrays["dense3"]["kernel"][1:] = 0
    widths, arrays = graphs.compacted(graph, round_to=8)
    assert widths == {"dense1": 8, "dense2": 5, "dense3": 2}
    assert not arrays["dense2"]["kernel"][3:].any()


class FeaturesAndMaps(nn.Module):
    """Adds features of a dense layer and flattened channels of a convolution."""

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Dense(12, name="dense1")(x.reshape(len(x), -1))
        x = nn.Conv(6, (1, 1), name="conv1")(x)
        return nn.Dense(2, name="dense2")(nn.relu(y + x.reshape(len(x), -1)))


def test_features_that_rounding_adds_come_with_their_channels():
    graph = graphs.prepared(FeaturesAndMaps(), (2, 1, 1))
    graph.arrays["dense2"]["kernel"].reshape(2, 6, 2)[:, 2:] = 0
    widths, _ = graphs.compacted(graphs.copied(graph))
    assert widths == {"dense1": 4, "conv1": 2, "dense2": 2}
    widths, _ = graphs.compacted(graph, round_to=3)  # from 4 to 6 with features of two channels
    assert widths == {"dense1": 12, "conv1": 6, "dense2": 2}


def test_a_channel_stays_while_one_of_its_features_is_read():
    graph = convolutions(padding=(0, 0))
    kernel = graph.arrays["dense1"]["kernel"]
    kernel[...] = 0
    kernel[7] = 1  # the second channel of the fourth pixel
    widths, arrays = graphs.compacted(graph)
    assert widths == {"conv1": 1, "conv2": 1, "dense1": 2}
    assert arrays["dense1"]["kernel"].shape == (16, 2)


def test_layers_without_bias_have_no_array_of_zeros():
    graph = graphs.prepared(Dense((3, 2)), (2, 2, 1))
    assert all("bias" in own for own in graphs.compacted(graphs.copied(graph))[1].values())
    for node in graph.nodes.values():
        if node.op == "affine":
            graph.arrays[node.name]["bias"][...] = 0
    assert not any("bias" in own for own in graphs.compacted(graph)[1].values())


class Gated(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        x = nn.Dense(3, name="dense1")(x) * nn.sigmoid(nn.Dense(3, name="dense2")(x))
        return nn.Dense(2, name="dense3")(x)


def test_a_function_of_units_is_constant_if_all_of_them_are():
    kernels = {"dense1": [0.0, 1.0, 1.0], "dense2": [0.0, 0.0, 1.0]}
    widths, arrays = graphs.compacted(graphs.prepared(Gated(), (2, 2, 1), **kernels))
    assert widths == {"dense1": 2, "dense2": 2, "dense3": 2}
    np.testing.assert_allclose(arrays["dense3"]["bias"], 1 + 1 / (1 + np.exp(-1)), rtol=1e-6)


class Normalised(nn.Module):
    """BatchNorm after a convolution, before one that pads, before one that does not, and a mean."""

    @nn.compact
    def __call__(self, x, train=False):
        norm = lambda x: nn.BatchNorm(True)(x)  # noqa: E731
        x = norm(nn.Conv(3, (3, 3), name="conv1")(x))
        y = norm(nn.relu(x))
        x = nn.Conv(3, (3, 3), name="conv2")(y) + nn.Conv(3, (1, 1), name="conv3")(y)
        x = norm(nn.relu(norm(nn.relu(x))))
        x = nn.Conv(3, (2, 2), padding="VALID", name="conv4")(x)
        return nn.Dense(2, name="dense1")(x.mean((1, 2)))


def normalised():
    graph = graphs.prepared(Normalised(), (4, 4, 1))
    numbers = np.random.default_rng(0)
    for arrays in graph.arrays.values():
        for array in arrays.values():
            array[...] = numbers.normal(size=array.shape)
    return graph


def test_batch_norm_goes_into_the_layers_beside_it_where_that_is_exact():
    graph = normalised()
    _, arrays = graphs.compacted(graph)
    affine = [key for key in arrays if key.startswith("affine")]
    assert len(affine) == 2  # before conv2, which pads, and between two relus


def test_a_batch_norm_without_bias_goes_into_convolutions_that_pad():
    graph = normalised()
    for node in graph.nodes.values():
        if node.op == "affine":
            graph.arrays[node.name]["bias"][...] = 0
    _, arrays = graphs.compacted(graph)
    assert len([key for key in arrays if key.startswith("affine")]) == 1


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_unit_that_batch_norm_scales_by_zero_is_constant(bias):
    graph = normalised()
    (norm,) = graph.readers("relu1")
    while (readers := graph.readers(norm.name)) and readers[0].op == "affine":
        (norm,) = readers
    graph.arrays[norm.name]["scale"][1] = 0
    graph.arrays[norm.name]["bias"][1] = bias
    widths, arrays = graphs.compacted(graph)
    assert widths["conv1"] == (3 if bias else 2)  # it carries the constant for conv2, which pads
    assert not bias or not arrays["conv1"]["kernel"][..., 1].any()


class Preactivated(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(3, name="dense1")(x.reshape(len(x), -1))
        y = nn.relu(nn.BatchNorm(True, use_bias=False, use_scale=False)(x))
        return nn.Dense(2, name="dense3")(x + nn.Dense(3, name="dense2")(y))


def test_only_the_sum_reads_a_unit_that_batch_norm_scales_by_zero():
    graph = graphs.prepared(Preactivated(), (2, 2, 1))
    last = next(node for node in graph.readers("dense1") if node.op == "affine")
    norm = graph.readers(last.name)[0]
    while (readers := graph.readers(norm.name))[0].op == "affine":
        (norm,) = readers
    graph.arrays[norm.name]["scale"][1] = 0
    graph.arrays[norm.name]["bias"][1] = 2
    widths, arrays = graphs.compacted(graph)
    assert widths == {"dense1": 3, "dense2": 3, "dense3": 2}
    np.testing.assert_array_equal(arrays["dense2"]["kernel"].any(1), [True, False, True])


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        dense = nn.Dense(4, name="dense1")
        return nn.Dense(2, name="dense2")(nn.relu(dense(nn.relu(dense(x.reshape(len(x), -1))))))


def test_a_layer_that_is_called_twice_becomes_two():
    columns = [1.0, 1.0, 0.0, 1.0]
    graph = graphs.prepared(Twice(), (2, 2, 1), dense1=columns, dense1_2=columns)
    graph.arrays["dense2"]["kernel"][3] = 0  # only the first call's fourth unit is read
    widths, _ = graphs.compacted(graph)
    assert widths == {"dense1": 3, "dense1_2": 2, "dense2": 2}
