"""Finds which layers share channels, and prunes these channels together.

A channel can be removed only from all layers that read it: then the layers that write it need not
compute it either. In a plain chain a group of channels has one writer and one reader. A residual
addition adds the outputs of several layers, and every layer that reads the sum reads all of them.
Their channels form one larger group, with one set of kept channels, one score a channel and one
rate.

Groups are found by watching the network compute. The outputs of all layers are replaced by ones,
and one channel of one layer by twos: where a layer's input then differs, that channel is read. All
variables are ones too, so that no BatchNorm or activation between layers maps the two numbers to
the same one. (NaN would be a clearer mark, but XLA's vectorised maxima drop it.) The architecture
may be any whose layers are `nn.Conv` and `nn.Dense`.

Every reader has leaves of its own for scores and rates, so that checkpoints and `bake` treat each
layer by itself. The leaves of a group start equal, and `share_gradients` keeps them equal.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from harp_jax.pruning.costs import Layer, is_kernel_call, kernel_path, trace_variables
from harp_jax.pruning.layers import Path, add_scores, layer_name, leaves_by_path
from harp_jax.pruning.masks import kept_channels
from harp_jax.pruning.scores import channel_scores
from harp_jax.types import Rate, Scalar, Variables

# Beside the paths of kernels: the two ends, and what stands before the path of a BatchNorm.
_IMAGES, _LOGITS, _NORM = ("images",), ("logits",), "batch norm"


class Group(NamedTuple):
    """Channels that are kept or removed together.

    Attributes:
        size: Number of channels.
        writers: Kernel paths of the layers whose outputs they are, in the order of the network.
        readers: Kernel paths of the layers whose inputs they are.
        norms: Paths of the BatchNorms that they pass.
        prunable: False for the channels of the images, the classes, and channels that no layer
            reads.
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

    Args:
        model: A network made by `harp_jax.models.create`.
        image_shape: (height, width, channels).

    Returns:
        Layers and groups.

    Raises:
        ValueError: If a layer is called twice, or reads channels otherwise than one by one (grouped
            convolutions, concatenation, normalisation across channels).
    """
    layers, variables = trace_variables(model, image_shape)
    channels = {_IMAGES: image_shape[-1]} | {layer.path: layer.outputs[-1] for layer in layers}
    flows = _flows(model, image_shape, layers, variables, channels)
    for layer in layers:
        inputs = flows[layer.path].shape[-1]
        if layer.kernel[-2] != inputs:
            raise ValueError(
                f"{layer_name(layer.path)!r} reads its {inputs} channels in groups, so they"
                " cannot be pruned"
            )
    # Writers are joined with their readers until no group has an end in another one.
    parent = {("out", name): ("out", name) for name in channels}
    parent |= {("in", name): ("in", name) for name in flows}

    def root(node: Any) -> Any:
        while parent[node] != node:
            node = parent[node]
        return node

    for reader, marks in flows.items():
        for writer, marked in zip(channels, marks, strict=True):
            if marked.any():
                _check_one_by_one(marked, reader, writer, channels[writer])
                parent[root(("in", reader))] = root(("out", writer))
    members: dict[Any, list[Any]] = {}
    for node in parent:
        members.setdefault(root(node), []).append(node)
    return Architecture(tuple(layers), tuple(_group(nodes, channels) for nodes in members.values()))


def _group(nodes: Sequence[tuple[str, Path]], channels: Mapping[Path, int]) -> Group:
    writers = [name for end, name in nodes if end == "out"]
    readers = [name for end, name in nodes if end == "in"]
    norms = [name for name in readers if name[0] == _NORM]
    readers = [name for name in readers if name[0] != _NORM]
    sizes = {channels[name] for name in writers}
    if len(sizes) != 1:
        names = ", ".join(map(layer_name, readers))
        raise ValueError(f"{names} read {sorted(sizes)} channels at once")
    return Group(
        size=sizes.pop(),
        writers=tuple(name for name in writers if name != _IMAGES),
        readers=tuple(name for name in readers if name != _LOGITS),
        norms=tuple(name[1:] for name in norms),
        prunable=_IMAGES not in writers and _LOGITS not in readers and bool(readers),
    )


def _flows(
    model: nn.Module,
    image_shape: Sequence[int],
    layers: Sequence[Layer],
    variables: Variables,
    channels: Mapping[Path, int],
) -> dict[Path, np.ndarray]:
    """Finds, by reader, `[writers, inputs]`: the inputs that each writer's last channel reaches."""
    shapes = {_IMAGES: tuple(image_shape)} | {layer.path: layer.outputs for layer in layers}
    places = {name: place for place, name in enumerate(channels)}

    def features(name: Path, marked: jax.Array) -> jax.Array:
        ones = jnp.ones((1, *shapes[name]))
        return jnp.where(marked == places[name], ones.at[..., -1].set(2.0), ones)

    def inputs_when(marked: jax.Array) -> dict[Path, jax.Array]:
        inputs = {}

        def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name == "__call__" and isinstance(context.module, nn.BatchNorm):
                inputs[(_NORM, *context.module.path)] = args[0]
            if not is_kernel_call(context):
                return call(*args, **kwargs)
            path = kernel_path(context.module)
            inputs[path] = args[0]
            return features(path, marked)

        with nn.intercept_methods(replace):
            ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), variables)
            inputs[_LOGITS] = model.apply(ones, features(_IMAGES, marked), train=False)
        return inputs

    def changes() -> dict[Path, jax.Array]:
        unmarked = inputs_when(jnp.int32(-1))

        def changed(marked: jax.Array) -> dict[Path, jax.Array]:
            return jax.tree.map(_differ, inputs_when(marked), unmarked)

        return jax.lax.map(changed, jnp.arange(len(places)))

    return jax.device_get(jax.jit(changes)())


def _differ(one: jax.Array, other: jax.Array) -> jax.Array:
    """Finds the channels in which two tensors differ by more than the rounding of two programs.

    Marks make a difference of about 1, also in bfloat16, where this tolerates 0.09.
    """
    tolerance = float(jnp.finfo(one.dtype).eps) ** 0.5
    return (jnp.abs(one - other) > tolerance).any(tuple(range(one.ndim - 1)))


def _check_one_by_one(marked: np.ndarray, reader: Path, writer: Path, size: int) -> None:
    """Checks that the last channel of a writer is each last of `size` inputs, and no other."""
    expected = np.arange(len(marked)) % size == size - 1
    if len(marked) % size or (marked != expected).any():
        names = [layer_name(name) or name[0] for name in (reader, writer)]
        raise ValueError(
            f"{names[0]!r} does not read the channels of {names[1]!r} one by one, so they"
            " cannot be pruned"
        )


def make_prunable(
    variables: Variables,
    rates: Mapping[Path, float],
    minimum: float,
    architecture: Architecture,
) -> dict[str, Any]:
    """Adds scores and rates of channels to the variables of a dense network, shared in each group.

    Args:
        variables: At least `params`; other collections are carried over.
        rates: Initial rate by kernel path; a group gets the mean of its readers'.
        minimum: Smallest rate a_min, in [0, 1).
        architecture: The network's architecture, with its groups.

    Returns:
        New variables; the readers of channels that cannot be pruned have no scores.
    """
    kernels = leaves_by_path(variables["params"])
    scores, shared_rates = {}, {}
    for group in architecture.prunable:
        initial = channel_scores([kernels[path] for path in group.readers], group.size)
        rate = sum(rates[path] for path in group.readers) / len(group.readers)
        scores |= dict.fromkeys(group.readers, initial)
        shared_rates |= dict.fromkeys(group.readers, rate)
    return add_scores(variables, scores, shared_rates, minimum)


def share_gradients(architecture: Architecture) -> optax.GradientTransformation:
    """Gives every leaf of a group the sum of the group's gradients.

    That is the gradient of one shared leaf, and leaves that start equal stay equal to the bit. For
    trees {collection: tree in the structure of `params`}, e.g. {'scores': ...}.

    Args:
        architecture: The network's architecture, with its groups.

    Returns:
        A stateless gradient transformation.
    """

    def share(updates: Any, params: Any = None) -> Any:
        del params
        leaves, structure = jax.tree.flatten_with_path(updates)
        by_path = {tuple(key.key for key in keys): leaf for keys, leaf in leaves}
        collections = dict.fromkeys(path[0] for path in by_path)
        for collection in collections:
            for group in architecture.prunable:
                paths = [(collection, *reader) for reader in group.readers]
                total = functools.reduce(jnp.add, [by_path[path] for path in paths])
                by_path |= dict.fromkeys(paths, total)
        return jax.tree.unflatten(structure, list(by_path.values()))

    return optax.stateless(share)


@dataclasses.dataclass(frozen=True)
class FlopsCost:
    """FLOPs of a network whose channels are pruned: a `costs.Cost`.

    A layer costs flops * (kept share of what it reads) * (kept share of what it writes); shares of
    groups that are not prunable are 1. The rate of a group is that of its first reader.

    Attributes:
        architecture: The network's architecture, with its groups.
    """

    architecture: Architecture
    unit = "FLOPs"

    @property
    def total(self) -> int:
        """FLOPs of the dense network on one image."""
        return sum(layer.flops for layer in self.architecture.layers)

    def soft_share(self, rates: Any) -> Scalar:
        """Computes sum(flops_l * a_in * a_out) / sum(flops_l) with the continuous rates."""
        readers = sorted(path for group in self.architecture.prunable for path in group.readers)
        by_path = dict(zip(readers, jax.tree.leaves(rates), strict=True))
        shares = [by_path[group.readers[0]] if group.prunable else 1.0 for group in self._groups]
        terms = [
            layer.flops / self.total * shares[reads] * shares[writes]
            for layer, reads, writes in self._ends
        ]
        return jnp.asarray(sum(terms), jnp.float32)

    def kept(self, rates: Mapping[Any, Rate]) -> int:
        """Computes the FLOPs of the network that has only the channels that the masks keep."""
        return self._flops(
            [
                int(kept_channels(rates[group.readers[0]], group.size))
                if group.prunable
                else group.size
                for group in self._groups
            ]
        )

    def equal_rates(self, path: Path, rate: Rate) -> tuple[float, float]:
        """Returns the rates of half a channel less and half a channel more than the mask keeps."""
        size = next(group.size for group in self._groups if path in group.readers)
        kept = int(kept_channels(rate, size))
        return (kept - 0.5) / size, (kept + 0.5) / size

    def target_share(self, rate: float) -> float:
        """Computes the share of the FLOPs of a network with round(rate * size) channels a group.

        Rounding is half to even, and at least one channel stays. The share is rounded up by one
        float64, so that its product with `total` allows that network.
        """
        flops = self._flops(
            [
                min(max(round(rate * group.size), 1), group.size) if group.prunable else group.size
                for group in self._groups
            ]
        )
        return min(1.0, float(np.nextafter(flops / self.total, 1.0)))

    def _flops(self, kept: Sequence[int]) -> int:
        """Computes the FLOPs with these numbers of channels, by group."""
        sizes = [group.size for group in self._groups]
        return sum(
            layer.flops // (sizes[reads] * sizes[writes]) * kept[reads] * kept[writes]
            for layer, reads, writes in self._ends
        )

    @property
    def _groups(self) -> tuple[Group, ...]:
        return self.architecture.groups

    @functools.cached_property
    def _ends(self) -> list[tuple[Layer, int, int]]:
        """Yields every layer with the places of the groups that it reads and writes."""
        reads = {path: place for place, group in enumerate(self._groups) for path in group.readers}
        writes = {path: place for place, group in enumerate(self._groups) for path in group.writers}
        return [
            (layer, reads[layer.path], writes[layer.path]) for layer in self.architecture.layers
        ]
