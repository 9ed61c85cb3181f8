"""Finds the layers of a network, and which of them share channels.

Groups are found by watching the network compute. The outputs of all layers are replaced by ones,
those of one layer by other numbers: where a layer's input then differs, that layer is read. Then
the channels of all layers are marked in examples of their own, the binary digits of their places,
so that an input tells which channel it reads. All variables are ones too, so that no BatchNorm or
activation between layers maps marks to ones. (NaN would be a clearer mark, but XLA's vectorised
maxima drop it.) The architecture may be any.

Channels that something reads otherwise than one by one are never pruned: those that are
concatenated, normalised together, split into the groups of a grouped convolution, or read by an
attention.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from harp_jax.pruning.costs import Layer, is_kernel_call, kernel_path, trace_variables
from harp_jax.pruning.layers import Path
from harp_jax.types import Variables

# Beside the paths of kernels: the two ends, and what stands before the path of a BatchNorm or of a
# layer of several axes.
_IMAGES, _LOGITS, _NORM, _GENERAL = ("images",), ("logits",), "batch norm", "general"
# Marked channels are above the ones in some examples, for maxima, and below them in others, for
# minima. They change over the pixels and from channel to channel, for normalisation over these.
_MARKS = ((2.0, 1.0), (0.5, -0.2))


class Group(NamedTuple):
    """Channels that are kept or removed together.

    Attributes:
        size: Number of channels.
        writers: Kernel paths of the layers whose outputs they are, in the order of the network.
        readers: Kernel paths of the layers whose inputs they are.
        norms: Paths of the BatchNorms that they pass.
        prunable: False for the channels of the images, the classes, channels that no layer reads,
            and those that something reads otherwise than one by one.
    """

    size: int
    writers: tuple[Path, ...]
    readers: tuple[Path, ...]
    norms: tuple[Path, ...]
    prunable: bool


class Architecture(NamedTuple):
    """The layers of a network and the channels that they share.

    Attributes:
        layers: The convolutions and dense layers, in the order of the network.
        groups: The groups of channels; empty at weight granularity, which does not need them.
    """

    layers: tuple[Layer, ...]
    groups: tuple[Group, ...] = ()

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups that can be pruned."""
        return tuple(group for group in self.groups if group.prunable)

    @property
    def pruned(self) -> list[Path]:
        """Paths of the kernels that get scores: all, or those that read channels of a group."""
        paths = [layer.path for layer in self.layers]
        if not self.groups:
            return paths
        readers = {path for group in self.prunable for path in group.readers}
        return [path for path in paths if path in readers]


def trace(model: nn.Module, image_shape: Sequence[int]) -> Architecture:
    """Finds the layers of a network and the channels that they share.

    A depthwise convolution reads a group and writes another one, as any other layer does.

    Args:
        model: Any linen module from NHWC images to logits.
        image_shape: (height, width, channels).

    Returns:
        Layers and groups.

    Raises:
        ValueError: If a layer is called twice, or nothing is left of the images.
    """
    layers, variables = trace_variables(model, image_shape)
    writers = {_IMAGES: image_shape[-1]}
    writers |= {layer.path: layer.outputs[-1] for layer in layers if not layer.general}
    flows = _flows(model, image_shape, variables, writers)
    sizes = {("out", name): size for name, size in writers.items()}
    sizes |= {("in", name): len(flow.places) for name, flow in flows.items()}
    joins = _Joins(list(sizes))
    for layer in layers:
        if not layer.general and not (layer.depthwise or layer.groups == 1):
            joins.block(("in", layer.path))
            joins.block(("out", layer.path))
    for reader, flow in flows.items():
        if reader[0] == _GENERAL:
            joins.block(("in", reader))
        for number, (writer, size) in enumerate(writers.items()):
            if flow.reached[number].any():
                one_by_one = flow.one_by_one(number, size)
                joins.join(("in", reader), ("out", writer), one_by_one)
    groups = [_group(nodes, sizes, blocked) for nodes, blocked in joins.groups()]
    return Architecture(tuple(layers), tuple(groups))


def joined(architecture: Architecture) -> Architecture:
    """Joins what depthwise convolutions read with what they write.

    Their kernels then belong to the writers of the group, not to the readers, which have scores.

    Args:
        architecture: The result of `trace`.

    Returns:
        The same layers, with one group in place of each chain of groups.
    """
    groups = list(architecture.groups)
    read = {path for group in groups for path in group.readers}
    depthwise = [layer.path for layer in architecture.layers if layer.depthwise]
    depthwise = [path for path in depthwise if path in read]
    for path in depthwise:
        (read,) = [group for group in groups if path in group.readers]
        (written,) = [group for group in groups if path in group.writers]
        if read is not written:  # else a residual addition has joined them
            parts = [(*one, *other) for one, other in zip(read[1:4], written[1:4], strict=True)]
            whole = Group(read.size, *parts, prunable=read.prunable and written.prunable)
            groups[groups.index(read)] = whole
            groups.remove(written)
    for place, group in enumerate(groups):
        readers = tuple(path for path in group.readers if path not in depthwise)
        prunable = group.prunable and bool(readers)
        groups[place] = group._replace(readers=readers, prunable=prunable)
    return architecture._replace(groups=tuple(groups))


class _Joins:
    """Ends of layers, joined to groups."""

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._parents = {node: node for node in nodes}
        self._blocked: list[Any] = []

    def join(self, reader: Any, writer: Any, one_by_one: bool) -> None:
        """Joins two ends; if channels are not read one by one, both are blocked instead."""
        if one_by_one:
            self._parents[self._root(reader)] = self._root(writer)
        else:
            self.block(reader)
            self.block(writer)

    def block(self, node: Any) -> None:
        """Keeps the group of an end from being pruned."""
        self._blocked.append(node)

    def groups(self) -> list[tuple[list[Any], bool]]:
        """Returns the ends of every group, and whether it is blocked."""
        members: dict[Any, list[Any]] = {}
        for node in self._parents:
            members.setdefault(self._root(node), []).append(node)
        blocked = {self._root(node) for node in self._blocked}
        return [(nodes, root in blocked) for root, nodes in members.items()]

    def _root(self, node: Any) -> Any:
        while self._parents[node] != node:
            node = self._parents[node]
        return node


def _group(nodes: Sequence[tuple[str, Path]], sizes: Mapping[Any, int], blocked: bool) -> Group:
    """Makes a group of its ends; ends of several sizes cannot be pruned."""
    writers = [name for end, name in nodes if end == "out"]
    readers = [name for end, name in nodes if end == "in"]
    norms = [name for name in readers if name[0] == _NORM]
    layers = [name for name in readers if name[0] not in (_NORM, _GENERAL)]
    found = {sizes["out", name] for name in writers} or {sizes["in", name] for name in readers}
    ends = _IMAGES in writers or _LOGITS in readers
    return Group(
        size=max(found),
        writers=tuple(name for name in writers if name != _IMAGES),
        readers=tuple(name for name in layers if name != _LOGITS),
        norms=tuple(name[1:] for name in norms),
        prunable=not (blocked or ends or len(found) > 1) and bool(layers),
    )


class _Flow(NamedTuple):
    """What a reader reads.

    Attributes:
        reached: Which of its inputs each writer reaches, bool `[writers, inputs]`.
        places: For each input the place, from 1, of the channel that it reads, whoever writes it.
            An input that reads several has the bits of all their places.
    """

    reached: np.ndarray
    places: np.ndarray

    def one_by_one(self, writer: int, size: int) -> bool:
        """Returns whether inputs read all channels of a writer in order, for each feature again."""
        inputs = len(self.places)
        in_order = np.array_equal(self.places, np.arange(inputs) % size + 1)
        return inputs % size == 0 and in_order and bool(self.reached[writer].all())


def _flows(
    model: nn.Module,
    image_shape: Sequence[int],
    variables: Variables,
    writers: Mapping[Path, int],
) -> dict[Path, _Flow]:
    """Finds, by reader, what it reads."""
    numbers = {name: number for number, name in enumerate(writers)}

    def inputs_when(marked: Callable[[Path], Any], digits: int) -> dict[Path, jax.Array]:
        inputs: dict[Path, jax.Array] = {}

        def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module, is_call = context.module, context.method_name == "__call__"
            outputs = call(*args, **kwargs)
            if is_call and isinstance(module, nn.BatchNorm):
                inputs[(_NORM, *module.path)] = args[0]
            elif is_call and isinstance(module, nn.DenseGeneral):
                inputs[(_GENERAL, *module.path)] = args[0]
            elif is_kernel_call(context) and (path := kernel_path(module)) in writers:
                inputs[path] = args[0]
                return _features(outputs.shape, digits, marked(path))
            return outputs

        with nn.intercept_methods(replace):
            ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)
            shape = (1 + len(_MARKS) * max(digits, 1), *image_shape)
            images = _features(shape, digits, marked(_IMAGES))
            logits: Any = model.apply(ones, images, train=False)
            inputs[_LOGITS] = logits
        return {name: _read(x, digits) for name, x in inputs.items()}

    def found() -> Any:
        one = lambda number: inputs_when(lambda name: number == numbers[name], 0)  # noqa: E731
        reached = jax.lax.map(one, jnp.arange(len(numbers)))
        return reached, inputs_when(lambda _: True, max(writers.values()).bit_length())

    reached, places = jax.device_get(jax.jit(found)())
    return {name: _Flow(reached[name] > 0, places[name]) for name in reached}


def _features(shape: Sequence[int], digits: int, marked: Any) -> jax.Array:
    """Makes the features of a layer: ones, in the first example and if it is not `marked`.

    In the others the channels are marked whose place, from 1, has a binary digit, once with each of
    `_MARKS`; with no digits, all channels are.
    """
    units = jnp.arange(1, shape[-1] + 1)
    bits = (units[None] >> jnp.arange(digits)[:, None]) & 1
    if digits == 0:
        bits = jnp.ones((1, shape[-1]), int)
    examples = 1 + len(_MARKS) * len(bits)
    pixels = math.prod(shape) // (examples * shape[-1])
    ramp = jnp.linspace(0.0, 1.0, pixels)[None, :, None] + (units % 2)
    marks = [jnp.where(bits[:, None] == 1, base + slope * ramp, 1.0) for base, slope in _MARKS]
    ones = jnp.ones((1, *ramp.shape[1:]))
    return jnp.where(marked, jnp.concatenate([ones, *marks]), 1.0).reshape(shape)


def _read(x: jax.Array, digits: int) -> jax.Array:
    """Finds the place, from 1, of the channel that each entry along the last axis reads; 0 if none.

    Examples differ from the first one by more than the rounding of another place in a vector: marks
    make a difference of about 1, also in bfloat16, where this tolerates 0.09.
    """
    rows = max(digits, 1)
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.5
    examples = x.reshape(1 + len(_MARKS) * rows, -1, x.shape[-1])
    differs = (jnp.abs(examples - examples[:1]) > tolerance).any(1)
    bits = differs[1:].reshape(len(_MARKS), rows, -1).any(0)
    return (bits * (1 << jnp.arange(rows))[:, None]).sum(0)
