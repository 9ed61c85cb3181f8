"""Finds which channels of which layers each layer of a network reads.

This is found by watching the network compute, many times. The outputs of all layers are replaced by
ones, those of one layer by other numbers: where a layer's input then differs, that layer is read.
Then channels of all layers are marked, each in its own half of the next times, so that an input
tells which channel it reads. Other arrays of the network get values that neither hide a mark nor
let it saturate. (NaN would be a clearer mark, but XLA's vectorised maxima drop it.) The
architecture may be any.

Numbers can hide that something is read, behind a threshold, say. So the network's program tells
which layers an input is computed from.
"""

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import tracers
from jax.extend import core

from harp_jax.pruning.costs import is_kernel_call, kernel_path
from harp_jax.pruning.layers import Path
from harp_jax.types import Variables

# Beside the paths of kernels: the two ends, and what stands before the path of a BatchNorm or of a
# layer of several axes.
IMAGES, LOGITS, NORM, GENERAL = ("images",), ("logits",), "batch norm", "general"
# Marked channels are above the ones in one example, for maxima, and below them in another, for
# minima and what negative numbers alone pass. They change over the pixels and from channel to
# channel, for normalisation over these.
_MARKS = ((2.0, 1.0), (-0.5, -1.0))
_EXAMPLES = 1 + len(_MARKS)


class Flow(NamedTuple):
    """The inputs of a reader.

    Attributes:
        sources: Numbers of the writers that its inputs are computed from.
        reached: Which of its inputs each writer changes, bool `[writers, inputs]`.
        marked: The times at which marks of channels change each input, bool `[times, inputs]`.
        codes: The times at which each channel is marked, bool `[times, channels]`.
    """

    sources: frozenset[int]
    reached: np.ndarray
    marked: np.ndarray
    codes: np.ndarray

    @property
    def inputs(self) -> int:
        """Number of inputs, along the last axis."""
        return self.marked.shape[-1]

    def one_by_one(self, writer: int, size: int) -> bool:
        """Returns whether inputs read all channels of a writer in order, for each feature again."""
        expected = self.codes[:, np.arange(self.inputs) % size]
        in_order = np.array_equal(self.marked, expected)
        return self.inputs % size == 0 and in_order and bool(self.reached[writer].all())


def _codes(channels: int) -> np.ndarray:
    """Returns when each channel is marked, bool `[times, channels]`.

    Each is at half of the times, so that several channels never change what one alone would.
    """
    times = next(n for n in itertools.count(2) if math.comb(n, n // 2) >= channels)
    codes = np.zeros((times, channels), bool)
    halves = itertools.combinations(range(times), times // 2)
    for channel, half in zip(range(channels), halves, strict=False):
        codes[list(half), channel] = True
    return codes


def flows(
    model: nn.Module,
    image_shape: Sequence[int],
    variables: Variables,
    writers: Mapping[Path, int],
) -> dict[Path, Flow]:
    """Finds what each layer and BatchNorm of a network reads, and what its logits are made of.

    Args:
        model: Any linen module from NHWC images to logits.
        image_shape: (height, width, channels).
        variables: Its variables, as shape structs.
        writers: Number of output channels, by name: of the images, and of layers by kernel path.

    Returns:
        By name, as of `writers`: kernel paths, LOGITS, (NORM, *path) and (GENERAL, *path).
    """
    numbers = {name: number for number, name in enumerate(writers)}
    codes = _codes(max(writers.values()))
    variables = jax.tree.map(_neutral, variables)

    def inputs_at(time: Any) -> Any:
        written: dict[Path, jax.Array] = {}

        def write(name: Path, shape: Sequence[int]) -> jax.Array:
            bits = jnp.asarray(codes)[time, : shape[-1]]
            alone = time - len(codes) == numbers[name]
            written[name] = _features(shape, jnp.where(time < len(codes), bits, alone))
            return written[name]

        images = write(IMAGES, (_EXAMPLES, *image_shape))
        inputs = _inputs(model, variables, images, writers, write)
        return {name: _differing(x) for name, x in inputs.items()}, written

    program, results = jax.make_jaxpr(inputs_at, return_shape=True)(0)
    structure = jax.tree.structure(results)
    ends, written = jax.tree.unflatten(structure, program.jaxpr.outvars)
    sources = _sources(program.jaxpr, {var: numbers[name] for name, var in written.items()})

    def at(time: jax.Array) -> dict[Path, jax.Array]:
        return jax.tree.unflatten(structure, core.jaxpr_as_fun(program)(time))[0]

    times = jnp.arange(len(codes) + len(numbers))
    differing = jax.device_get(jax.jit(lambda: jax.lax.map(at, times))())
    return {
        name: Flow(
            sources.get(ends[name], frozenset()), bits[len(codes) :], bits[: len(codes)], codes
        )
        for name, bits in differing.items()
    }


def _inputs(
    model: nn.Module,
    variables: Variables,
    images: jax.Array,
    writers: Container[Path],
    write: Callable[[Path, Sequence[int]], jax.Array],
) -> dict[Path, jax.Array]:
    """Runs a network whose layers give what `write` makes, and returns what they read."""
    inputs: dict[Any, jax.Array] = {}
    level = tracers.current_trace()

    def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, outputs = context.module, call(*args, **kwargs)
        if context.method_name != "__call__" or tracers.current_trace() != level:
            return outputs
        x: Any = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(module, nn.BatchNorm) and isinstance(module.axis, int):
            name: Any = (NORM, *module.path)
            while name in inputs:
                name = (NORM, *name)
            inputs[name] = jnp.moveaxis(x, module.axis, -1)
        elif isinstance(module, nn.BatchNorm | nn.DenseGeneral):
            inputs[(GENERAL, *module.path)] = x
        elif is_kernel_call(context) and (path := kernel_path(module)) in writers:
            inputs[path] = x
            if outputs.shape[0] % _EXAMPLES == 0:  # else it works on no images
                return write(path, outputs.shape)
        return outputs

    with nn.intercept_methods(replace):
        logits: Any = model.apply(variables, images, train=False)
    return {**inputs, LOGITS: logits}


def _sources(program: core.Jaxpr, written: Mapping[Any, int]) -> dict[Any, frozenset[int]]:
    """Finds the writers that each variable is computed from; `written` are the writers' own."""
    known: dict[Any, frozenset[int]] = {}
    for equation in program.eqns:
        inputs = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
        union = frozenset().union(*(known.get(atom, ()) for atom in inputs))
        for variable in equation.outvars:
            known[variable] = frozenset([written[variable]]) if variable in written else union
    return known


def _neutral(leaf: Any) -> jax.Array:
    """Returns an array that keeps features of ones near one, as a scale or as a mean over inputs.

    Not ones: what is scaled by one minus the array would not be seen.
    """
    return jnp.full(leaf.shape, 0.75 / math.prod(leaf.shape[:-1]), leaf.dtype)


def _features(shape: Sequence[int], marked: jax.Array) -> jax.Array:
    """Makes the features of a layer, with marks in all examples but the first; the rest is ones."""
    pixels = math.prod(shape) // (_EXAMPLES * shape[-1])
    phases = np.modf(0.618 * np.arange(shape[-1]))[0]
    ramp = jnp.linspace(0.0, 1.0, pixels)[:, None] + jnp.float32(phases)[None]
    marks = [jnp.where(marked[None], base + slope * ramp, 1.0) for base, slope in _MARKS]
    return jnp.stack([jnp.ones(ramp.shape), *marks]).reshape(shape)


def _differing(x: jax.Array) -> jax.Array:
    """Finds which inputs, along the last axis, differ in some example from the first one.

    All do if there are not the features of each example. Differences are those beyond the rounding
    of another place in a vector: marks make a difference of about 1, also in bfloat16, where this
    tolerates 0.09.
    """
    if x.ndim < 2 or x.shape[0] % _EXAMPLES:
        return jnp.ones(x.shape[-1:] or 1, bool)
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.5
    rows = x.reshape(_EXAMPLES, -1, x.shape[-1])
    return (jnp.abs(rows - rows[:1]) > tolerance).any((0, 1))
