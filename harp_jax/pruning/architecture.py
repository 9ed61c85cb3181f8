"""Finds the layers of a network, and which of them share channels.

Channels that something reads otherwise than one by one, or in a way that marks do not show (see
`flows`), are never pruned: those that are concatenated, normalised together, split into the groups
of a grouped convolution, or read by an attention.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from harp_jax.pruning.costs import Layer, trace_variables
from harp_jax.pruning.flows import GENERAL, IMAGES, LOGITS, NORM, flows
from harp_jax.pruning.layers import Path


class Group(NamedTuple):
    """Channels that are kept or removed together.

    Attributes:
        size: Number of channels.
        writers: Kernel paths of the layers whose outputs they are, in the order of the network.
        readers: Kernel paths of the layers whose inputs they are.
        norms: Paths of the BatchNorms that they pass.
        prunable: False for the channels of the images, the classes, channels that no layer reads
            or writes, and those that something reads otherwise than one by one.
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
    writers = {IMAGES: image_shape[-1]}
    writers |= {layer.path: layer.outputs[-1] for layer in layers if not layer.general}
    found = flows(model, image_shape, variables, writers)
    sizes = {("out", name): size for name, size in writers.items()}
    sizes |= {("in", name): flow.inputs for name, flow in found.items()}
    joins = _Joins(list(sizes))
    for layer in layers:
        if not layer.general and not (layer.depthwise or layer.groups == 1):
            joins.block(("in", layer.path))
            joins.block(("out", layer.path))
    for reader, flow in found.items():
        if reader[0] == GENERAL:
            joins.block(("in", reader))
        if reader[:2] == (NORM, NORM):  # a BatchNorm that is called again
            joins.join(("in", reader), ("in", reader[1:]), one_by_one=True)
        for number, (writer, size) in enumerate(writers.items()):
            if number in flow.sources:
                joins.join(("in", reader), ("out", writer), flow.one_by_one(number, size))
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
            prunable = read.prunable and written.prunable and read.size == written.size
            place = min(groups.index(read), groups.index(written))
            groups = [group for group in groups if group not in (read, written)]
            groups.insert(place, Group(read.size, *parts, prunable=prunable))
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
    norms = [name for name in readers if name[0] == NORM]
    layers = [name for name in readers if name[0] not in (NORM, GENERAL)]
    found = {sizes["out", name] for name in writers} or {sizes["in", name] for name in readers}
    ends = IMAGES in writers or LOGITS in readers
    return Group(
        size=max(found),
        writers=tuple(name for name in writers if name != IMAGES),
        readers=tuple(name for name in layers if name != LOGITS),
        norms=tuple(dict.fromkeys(name[name.count(NORM) :] for name in norms)),
        prunable=not (blocked or ends or len(found) > 1) and bool(layers and writers),
    )
