"""A small pruned network that runs outside of JAX, for a few images at a time.

A call through JAX takes longer than such a network computes. So its steps, after exact compaction,
go to a native function as a list: all of them run on the core that calls, and touch the kept
weights alone.
"""

import collections
import ctypes
import functools
import logging
import math
from typing import Any

import flax.linen as nn
import numpy as np

from harp_jax import native
from harp_jax.export.compact_folding import fold
from harp_jax.export.compact_graph import Node
from harp_jax.export.compact_narrowing import narrow
from harp_jax.export.compact_tracing import trace
from harp_jax.ops.sparse_conv import FEW_IMAGES, Kept
from harp_jax.types import LogitsFn, Variables

_LOGGER = logging.getLogger(__name__)

_KINDS = {"conv": 0, "dense": 1, "affine": 2, "add": 3, "mean": 4, "max_pool": 5, "avg_pool": 6}
_LANES = 16  # floats of a vector; vectors may run over the end of a value
_WITH_RELU = ("conv", "dense", "affine", "add")
# Largest product of the kept share and the number of images, measured for cnn, vgg16_bn, resnet18.
_LARGEST = 0.2
_PAIR, _SHAPE = ctypes.c_int64 * 2, ctypes.c_int64 * 3


class Step(ctypes.Structure):
    """One step of a native network; mirrors `Step` in native/network.cc.

    Values of steps are [channels, height, width], features [features, 1, 1]. `read`, `other`,
    `written` and `planes` say where in the memory they begin. A convolution first makes `copies`
    planes of `rows` times `columns`: `copied` has the channel of each, and the first row and column
    of it. `offsets` are those of what each kept weight reads, from `planes` or `read` on; `starts`
    where the weights of each output begin.
    """

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("kind", "relu", "read", "other", "written")),
        *(("from_", _SHAPE), ("to", _SHAPE)),
        *((name, _PAIR) for name in ("window", "strides", "start")),
        *((name, ctypes.c_int64) for name in ("planes", "rows", "columns", "copies")),
        *((name, ctypes.c_void_p) for name in ("copied", "offsets", "starts", "values", "bias")),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        ("steps", ctypes.POINTER(Step)),
        *((name, ctypes.c_int64) for name in ("count", "floats", "logits")),
        ("images", _SHAPE),
    )


class NativeNetwork:
    """Computes logits of NumPy images; any number of threads may call it.

    Attributes:
        image_shape: (height, width, channels).
    """

    def __init__(self, nodes: tuple[Node, ...], arrays: dict[str, Any]):
        """Lays out a compact network.

        Args:
            nodes: Of `compact_graph.CompactNetwork`.
            arrays: Their float32 arrays, by node.

        Raises:
            ValueError: If a node is of a kind that has no native step.
            NotImplementedError: If `native.available()` is false.
        """
        layout = _Layout(nodes, arrays)
        self.image_shape = nodes[0].outputs
        self._classes = nodes[-1].outputs[0]
        self._arrays = layout.held
        self._steps = (Step * len(layout.steps))(*layout.steps)
        logits = layout.steps[-1].written
        shape = _SHAPE(*_planes(self.image_shape))
        self._network = _Network(self._steps, len(layout.steps), layout.floats, logits, shape)
        self._pointer = ctypes.addressof(self._network)
        self._run = native.network_function()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Maps images [N, height, width, channels] in [0, 1] to logits [N, classes], float32.

        Raises:
            ValueError: For images of another size than the network was made for.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images of shape {images.shape[1:]}: allowed are {self.image_shape}")
        images = np.ascontiguousarray(images, np.float32)
        logits = np.empty((len(images), self._classes), np.float32)
        self._run(self._pointer, images.ctypes.data, len(images), logits.ctypes.data)
        return logits


def native_network(
    network: nn.Module, variables: Variables, image_shape: tuple[int, int, int]
) -> NativeNetwork:
    """Makes the native form of a network.

    Args:
        network: A network that `compact_tracing.trace` takes; it computes in float32.
        variables: Its variables, with the masks applied.
        image_shape: (height, width, channels).

    Raises:
        ValueError: If the network has a step without a native one.
        NotImplementedError: If `native.available()` is false.
    """
    graph = trace(network, variables, image_shape)
    fold(graph)
    return NativeNetwork(*narrow(graph, round_to=1))


def for_few_images(
    compiled: LogitsFn,
    network: nn.Module,
    variables: Variables,
    image_shape: tuple[int, int, int],
    share: float,
) -> LogitsFn:
    """Returns a function that runs few NumPy images natively where that is faster.

    Args:
        compiled: The function of all other images. It takes all if the network has a step without
            a native one.
        network: See `native_network`.
        variables: See there.
        image_shape: See there.
        share: Share of the weights that are kept.

    Returns:
        The function. Its logits are NumPy's where it runs natively; they are the same but for
        rounding.
    """

    @functools.cache
    def made() -> NativeNetwork | None:
        try:
            return native_network(network, variables, image_shape)
        except Exception as error:  # a user's network may raise anything
            _LOGGER.info("no native network: %s", error)
            return None

    def fits(images: Any) -> bool:
        return (
            isinstance(images, np.ndarray)
            and images.shape[1:] == image_shape
            and images.dtype.kind == "f"
            and 0 < len(images) < FEW_IMAGES
            and share * len(images) <= _LARGEST
        )

    def logits_fn(images: Any) -> Any:
        run = made() if fits(images) else None
        return compiled(images) if run is None else run(images)

    return logits_fn


class _Layout:
    """Places the values of nodes in one piece of memory, and makes the steps."""

    def __init__(self, nodes: tuple[Node, ...], arrays: dict[str, Any]):
        self.nodes = {node.name: node for node in nodes}
        self.arrays = arrays
        self.steps: list[Step] = []
        self.held: list[np.ndarray] = []  # what steps point to
        self.floats = 0
        self._readers = collections.Counter(name for node in nodes for name in node.inputs)
        self._made: dict[str, Step] = {}  # the step that writes a node's value
        self._places = {nodes[0].name: self._take(math.prod(nodes[0].outputs))}
        for node in nodes[1:]:
            self._add(node)
        if len(nodes[-1].outputs) != 1 or nodes[-1].op == "flatten":
            raise ValueError(f"model: its logits are made by {nodes[-1].op!r}")

    def _take(self, floats: int) -> int:
        begin = self.floats
        self.floats += floats + _LANES
        return begin

    def _pointer(self, array: Any, dtype: Any) -> int:
        self.held.append(np.ascontiguousarray(array, dtype))
        return self.held[-1].ctypes.data

    def _add(self, node: Node) -> None:
        source = self.nodes[node.inputs[0]]
        if any(self.nodes[name].op == "flatten" for name in node.inputs) and node.op != "dense":
            raise ValueError(f"model: {node.op!r} reads flattened features; allowed is 'dense'")
        if node.op == "flatten":
            self._places[node.name] = self._places[source.name]
        elif node.op == "relu" and self._takes_relu(source):
            self._places[node.name] = self._places[source.name]
            self._made[source.name].relu = 1
        else:
            self._made[node.name] = self._step(node, source)

    def _takes_relu(self, source: Node) -> bool:
        return source.op in _WITH_RELU and self._readers[source.name] == 1

    def _step(self, node: Node, source: Node) -> Step:
        """Adds the step that writes a node's value."""
        self._places[node.name] = written = self._take(math.prod(node.outputs))
        step = Step(relu=node.op == "relu", read=self._places[source.name], written=written)
        step.from_, step.to = _SHAPE(*_planes(source.outputs)), _SHAPE(*_planes(node.outputs))
        arrays = self.arrays.get(node.name, {})
        step.bias = self._pointer(arrays.get("bias", np.zeros(node.outputs[-1])), np.float32)
        op = node.op
        if op == "relu":
            op, arrays = "affine", {"scale": np.ones(node.outputs[-1])}
        if op == "dense" and len(node.outputs) == 3:
            op, node = "conv", node._replace(strides=(1, 1), padding=((0, 0), (0, 0)))
        if op not in _KINDS:
            raise ValueError(f"model: has no native step for {op!r}; allowed are {list(_KINDS)}")
        step.kind = _KINDS[op]
        if op == "affine":
            step.values = self._pointer(arrays["scale"], np.float32)
        elif op == "add":
            step.other = self._places[node.inputs[1]]
        elif op == "dense":
            self._dense(step, arrays["kernel"], source)
        elif op == "conv":
            self._conv(step, arrays["kernel"], node)
        elif op in ("max_pool", "avg_pool"):
            step.window, step.strides = _PAIR(*node.window), _PAIR(*node.strides)
            step.start = _PAIR(*(-before for before, _ in node.padding))
        self.steps.append(step)
        return step

    def _weights(self, step: Step, kernel: np.ndarray) -> np.ndarray:
        """Lists the kept weights of a kernel, by output; returns their places in it."""
        kept = Kept.of(kernel.reshape((1,) * (4 - kernel.ndim) + kernel.shape) != 0).index
        starts = np.searchsorted(kept[:, 3], np.arange(kernel.shape[-1] + 1))
        step.starts = self._pointer(starts, np.int64)
        values = kernel.reshape((1,) * (4 - kernel.ndim) + kernel.shape)[tuple(kept.T)]
        step.values = self._pointer(values, np.float32)
        return kept.astype(np.int64)

    def _dense(self, step: Step, kernel: np.ndarray, source: Node) -> None:
        places = np.arange(len(kernel))
        if source.op == "flatten":  # [height, width, channels], which here are planes
            *pixels, channels = self.nodes[source.inputs[0]].outputs
            places = places.reshape(channels, *pixels).transpose(1, 2, 0).ravel()
        step.offsets = self._pointer(places[self._weights(step, kernel)[:, 2]], np.int64)

    def _conv(self, step: Step, kernel: np.ndarray, node: Node) -> None:
        row, column, channel, _ = self._weights(step, kernel).T
        down, right = node.dilation or (1, 1)
        row, column = row * down, column * right
        strides, before = np.array(node.strides), [low for low, _ in node.padding]
        lowest = np.array(
            [each.min(initial=0 if not len(each) else each[0]) for each in (row, column)]
        )
        down, right = row - lowest[0], column - lowest[1]
        step.rows = node.outputs[0] + int(down.max(initial=0)) // node.strides[0]
        step.columns = node.outputs[1] + int(right.max(initial=0)) // node.strides[1]
        step.strides = _PAIR(*node.strides)
        first = lowest - before
        phases = np.stack([channel, down % strides[0], right % strides[1]], 1)
        copied, number = np.unique(phases, axis=0, return_inverse=True)
        step.planes = step.read
        size = step.rows * step.columns
        whole = (step.rows, step.columns) == tuple(step.from_[1:]) and not first.any()
        if whole and (strides == 1).all():  # the planes are the input's own
            number = channel
        else:
            copied[:, 1:] += first
            step.copies, step.planes = len(copied), self._take(len(copied) * size)
            step.copied = self._pointer(copied, np.int64)
        places = down // strides[0] * step.columns + right // strides[1]
        step.offsets = self._pointer(number.ravel() * size + places, np.int64)


def _planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns (channels, height, width) of the shape of a value for one image."""
    *pixels, units = shape
    height, width = pixels or (1, 1)
    return units, height, width
