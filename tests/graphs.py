"""Graphs of small networks, and NumPy that runs them in float64."""

import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harp_jax.export.compact_folding import fold
from harp_jax.export.compact_graph import LAYERS, Graph
from harp_jax.export.compact_narrowing import narrow
from harp_jax.export.compact_tracing import trace
from harp_jax.models.bottleneck import BottleneckResNet
from harp_jax.models.convnet import ConvNet
from harp_jax.models.resnet import ResNet
from harp_jax.models.vgg import POOL, VGG
from harp_jax.models.wrn import WideResNet


def windows(x, node, fill):
    """[taps, batch, height, width, channels]: what every tap of a window sees."""
    x = np.pad(x, ((0, 0), *node.padding, (0, 0)), constant_values=fill)
    (rows, columns), steps = node.outputs[:2], node.strides
    return np.stack(
        [
            x[:, i : i + rows * steps[0] : steps[0], j : j + columns * steps[1] : steps[1]][
                :, :rows, :columns
            ]
            for i in range(node.window[0])
            for j in range(node.window[1])
        ]
    )


def apply(function, *features):
    """A function entry by entry, in float64 as JAX would not do it."""
    rest = iter(features)
    values = [next(rest) if number is None else number for number in function.operands]
    return {
        "integer_pow": lambda x: x ** dict(function.settings)["y"],
        "mul": np.multiply,
        "tanh": np.tanh,
        "logistic": lambda x: 1 / (1 + np.exp(-x)),
        "ge": np.greater_equal,
        "select_n": lambda which, no, yes: np.where(which, yes, no),
    }[function.primitive.name](*values)


def evaluate(nodes, arrays, images):
    """The value of the last node, in float64."""
    values = {}
    for node in nodes:
        inputs = [values[name] for name in node.inputs]
        own = arrays.get(node.name, {})
        if node.op == "images":
            value = images
        elif node.op == "conv":
            kernel = own["kernel"].reshape(-1, *own["kernel"].shape[2:])
            value = np.einsum("tbhwi,tio->bhwo", windows(*inputs, node, 0.0), kernel)
        elif node.op == "dense":
            value = inputs[0] @ own["kernel"]
        elif node.op == "affine":
            value = inputs[0] * own["scale"] + own["bias"]
        elif node.op == "max_pool":
            value = windows(*inputs, node, -np.inf).max(0)
        elif node.op == "avg_pool":
            value = windows(*inputs, node, 0.0).mean(0)
        else:
            value = {
                "relu": lambda x: np.maximum(x, 0),
                "mean": lambda x: x.mean((1, 2)),
                "flatten": lambda x: x.reshape(len(x), -1),
                "add": np.add,
                "elementwise": functools.partial(apply, node.function),
            }[node.op](*inputs)
        if node.op in LAYERS and "bias" in own:
            value = value + own["bias"]
        assert value.shape[1:] == node.outputs, node
        values[node.name] = value
    return value


def copied(graph):
    return Graph(dict(graph.nodes), copy.deepcopy(graph.arrays), graph.output)


def logits(graph, images):
    return evaluate(graph.nodes.values(), graph.arrays, images)


class Chain(nn.Module):
    """Paddings and strides of all kinds, normalised images, pools that pad, gelu and tanh."""

    @nn.compact
    def __call__(self, x, train=False):
        x = (x - jnp.array([0.3, 0.2]).reshape(1, 1, 1, 2)) / 0.5
        x = nn.relu(nn.BatchNorm(True)(nn.Conv(5, (3, 3), padding="SAME")(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        x = nn.gelu(nn.Conv(4, (3, 3), (2, 2), padding=((1, 1), (1, 1)))(x))
        x = nn.avg_pool(x, (2, 2), (1, 1), padding="SAME")
        x = nn.leaky_relu(nn.Conv(6, (2, 2), padding="VALID")(x))
        x = nn.Conv(5, (3, 3), (2, 2), padding="SAME")(x)
        x = nn.tanh(nn.Dense(5)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


class Joins(nn.Module):
    """Additions of feature maps, and of flattened ones with features of a dense layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(x + nn.Conv(4, (3, 3))(x))
        x = x + nn.Dense(4)(nn.relu(nn.Conv(3, (1, 1))(x)))
        y = nn.max_pool(x, (4, 4), (4, 4)).reshape(len(x), -1)
        return nn.Dense(3)(nn.relu(y + nn.Dense(16)(x.mean((1, 2)))))


NETWORKS = {
    "cnn": (ConvNet(3, widths=(4, 5), hidden=6), (8, 8, 1)),
    "vgg": (VGG(3, plan=(4, 4, POOL, 5, 5), hidden=(6, 4)), (4, 4, 2)),
    "resnet": (ResNet(3, stages=(1, 2), width=4), (4, 4, 2)),
    "wrn": (WideResNet(3, depth=10, widen=1), (4, 4, 2)),
    "bottleneck": (BottleneckResNet(3, stages=(2, 1), width=2), (9, 9, 2)),
    "chain": (Chain(), (9, 9, 2)),
    "joins": (Joins(), (8, 8, 1)),
}


@functools.cache
def traced(name):
    model, shape = NETWORKS[name]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    numbers = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(numbers.uniform(0.2, 1.0, leaf.shape), jnp.float32)  # noqa: E731
    variables = jax.tree.map(draw, shapes)
    images = numbers.uniform(size=(2, *shape))
    expected = jax.jit(functools.partial(model.apply, train=False))(variables, jnp.float32(images))
    return trace(model, variables, shape), images, expected


def randomise(graph, density, numbers):
    """Draws all arrays anew, with few weights that are not zero and some empty columns and rows."""
    for name, arrays in graph.arrays.items():
        for key, array in arrays.items():
            drawn = numbers.normal(size=array.shape)
            if key == "kernel":
                drawn *= numbers.random(array.shape) < density
                drawn *= numbers.random(array.shape[-1]) < 0.7
                drawn *= numbers.random((array.shape[-2], 1)) < 0.8
            elif graph.nodes[name].op in LAYERS:
                drawn *= numbers.random(array.shape) < 0.6
            array[...] = drawn


def prepared(model, shape, **kernels):
    """The graph of a model whose kernels are ones, or as given, with all biases ones."""
    images = jnp.zeros((1, *shape))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    graph = trace(model, variables, shape)
    for name, arrays in graph.arrays.items():
        if name in kernels:
            arrays["kernel"][...] = kernels[name]
    return graph


def compacted(graph, round_to=1):
    """Widths and arrays after compaction; the logits have not changed."""
    (height, width, channels) = graph.nodes["images"].outputs
    images = np.random.default_rng(0).uniform(size=(2, height, width, channels))
    expected = logits(graph, images)
    fold(graph)
    nodes, arrays = narrow(graph, round_to)
    np.testing.assert_allclose(evaluate(nodes, arrays, images), expected, rtol=1e-6, atol=1e-6)
    return {node.name: node.outputs[-1] for node in nodes if node.op in LAYERS}, arrays
