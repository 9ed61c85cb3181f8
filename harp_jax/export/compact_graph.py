"""A network as a list of nodes, and the linen module that runs it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from harp_jax import ops
from harp_jax.export.compact_steps import Step, operand_name
from harp_jax.types import Images, Logits

LAYERS = ("conv", "dense")
WITH_KERNEL = (*LAYERS, "grouped", "depthwise")


class Function(NamedTuple):
    """A JAX primitive that works entry by entry.

    Attributes:
        primitive: The primitive.
        settings: Its parameters, as (name, value).
        operands: For each of its operands the number that it always is, or None for a node's value.
    """

    primitive: Any
    settings: tuple[tuple[str, Any], ...]
    operands: tuple[Any, ...]

    def __call__(self, *features: Any) -> jax.Array:
        """Applies the primitive to arrays of one shape."""
        rest = iter(features)
        shape = features[0].shape
        values = [
            next(rest) if number is None else jnp.full(shape, number) for number in self.operands
        ]
        return self.primitive.bind(*values, **dict(self.settings))


class Node(NamedTuple):
    """One step of a network.

    Attributes:
        name: Name of the node and of its value. A layer has the name of the layer it comes from,
            e.g. 'conv2_1/conv1'.
        op: 'images': the input. 'conv' and 'dense': a layer with 'kernel' (HWIO or IO) and, if
            `bias`, 'bias' `[out]`; convolutions pad with zeros, dense layers read the last axis.
            'grouped': a convolution in `groups`; its kernel is HWIO with the inputs of one group.
            'depthwise': one with a group for each input and output.
            'affine': units times 'scale' `[units]` plus 'bias' `[units]`. 'relu'. 'max_pool' pads
            with minus infinity. 'avg_pool' pads with zeros and counts them. 'mean': over height and
            width. 'flatten': `[height, width, channels]` to one axis. 'add': of two values.
            'concat': of values along the last axis. 'elementwise': `function` of all inputs, entry
            by entry. 'step': `function` of all inputs, which may mix units, and its arrays.
        inputs: Names of the nodes whose values it reads.
        outputs: Shape of its value for one image. Units (channels, features) are the last axis.
        window: Height and width of a kernel or pool.
        strides: Steps of the window along height and width.
        padding: Pixels before and after, along height and width.
        dilation: Distances of a kernel's entries along height and width; () means 1.
        groups: Of 'grouped' and 'depthwise': groups of inputs, each read by outputs of its own.
        bias: Whether a layer has a bias.
        function: Of 'elementwise' and 'step'.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = False
    function: Function | Step | None = None

    @property
    def units(self) -> int:
        """Number of channels or features: the length of the last axis, if there is one."""
        return self.outputs[-1] if self.outputs else 1


@dataclasses.dataclass
class Graph:
    """A network that is being compacted.

    Attributes:
        nodes: By name, each after its inputs.
        arrays: Float64 arrays by node and name: 'kernel' and 'bias' of layers, 'scale' and 'bias'
            of 'affine', operands of 'step'.
        output: Name of the node whose value is the logits.
    """

    nodes: dict[str, Node]
    arrays: dict[str, dict[str, np.ndarray]]
    output: str = ""

    @property
    def layers(self) -> Iterator[Node]:
        """The convolutions without groups, and dense layers."""
        return (node for node in self.nodes.values() if node.op in LAYERS)

    def readers(self, name: str) -> list[Node]:
        """Returns the nodes that read a node's value."""
        return [node for node in self.nodes.values() if name in node.inputs]

    def bypass(self, node: Node) -> None:
        """Removes a node with one input, whose value then takes the place of the node's."""
        (source,) = node.inputs
        for reader in self.readers(node.name):
            inputs = tuple(source if name == node.name else name for name in reader.inputs)
            self.nodes[reader.name] = reader._replace(inputs=inputs)
        if self.output == node.name:
            self.output = source
        del self.nodes[node.name]
        self.arrays.pop(node.name, None)


class Affine(nn.Module):
    """Multiplies units by a scale and adds a bias, both along the last axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., units]` to the same shape."""
        scale = self.param("scale", initializers.ones, x.shape[-1:])
        bias = self.param("bias", initializers.zeros, x.shape[-1:])
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]
        return x * scale.reshape(shape) + bias.reshape(shape)


class Other(nn.Module):
    """Runs a step of no known kind.

    Attributes:
        step: The step.
    """

    step: Step

    @nn.compact
    def __call__(self, *features: jax.Array) -> jax.Array:
        """Maps the values of the input nodes, images first, to that of the node."""
        arrays = {
            name: self.param(name, initializers.zeros, operand.shape)
            for place, operand in enumerate(self.step.operands)
            if isinstance(operand, jax.ShapeDtypeStruct)
            for name in (operand_name(place),)
        }
        return self.step(len(features[0]), arrays, *features)


class CompactNetwork(nn.Module):
    """Runs a list of nodes; the arrays of a node are the `params` under its name.

    Attributes:
        nodes: The images first, the logits last, each after its inputs.
    """

    nodes: tuple[Node, ...]

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> Logits:
        """Computes the logits of images in [0, 1]; `train` changes nothing.

        Raises:
            ValueError: For images of another size than the network was made for.
        """
        if images.shape[1:] != self.nodes[0].outputs:
            raise ValueError(
                f"images of shape {images.shape[1:]}: allowed are {self.nodes[0].outputs}"
            )
        values: dict[str, Any] = {self.nodes[0].name: images}
        for node in self.nodes[1:]:
            values[node.name] = _RUN[node.op](node, *(values[name] for name in node.inputs))
        return values[self.nodes[-1].name]


def _conv(node: Node, x: jax.Array) -> jax.Array:
    return nn.Conv(
        node.outputs[-1],
        node.window,
        node.strides,
        node.padding,
        kernel_dilation=node.dilation or 1,
        feature_group_count=node.groups,
        use_bias=node.bias,
        conv_general_dilated=ops.conv_general_dilated,
        name=node.name,
    )(x)


def _avg_pool(node: Node, x: jax.Array) -> jax.Array:
    pool: Any = nn.avg_pool  # its annotation allows only strings as padding
    return pool(x, node.window, node.strides, node.padding)


def _elementwise(node: Node, *features: jax.Array) -> jax.Array:
    assert isinstance(node.function, Function)
    return node.function(*features)


_RUN: dict[str, Callable[..., jax.Array]] = {
    "conv": _conv,
    "grouped": _conv,
    "depthwise": _conv,
    "dense": lambda node, x: nn.Dense(node.outputs[-1], node.bias, name=node.name)(x),
    "affine": lambda node, x: Affine(name=node.name)(x),
    "relu": lambda node, x: nn.relu(x),
    "max_pool": lambda node, x: ops.max_pool(x, node.window, node.strides, node.padding),
    "avg_pool": _avg_pool,
    "mean": lambda node, x: x.mean((1, 2)),
    "flatten": lambda node, x: x.reshape(x.shape[0], *node.outputs),
    "add": lambda node, x, y: x + y,
    "concat": lambda node, *features: jnp.concatenate(features, -1),
    "elementwise": _elementwise,
    "step": lambda node, *features: Other(node.function, name=node.name)(*features),
}
