"""Finds which channels of which layers each layer of a network reads.

This is found by watching the network compute. The outputs of all layers are replaced by ones, those
of one layer by other numbers: where a layer's input then differs, that layer is read. Then the
channels of all layers are marked, each in its own half of some examples, so that an input tells
which channel it reads. Other arrays of the network get values that neither hide a mark nor let it
saturate. (NaN would be a clearer mark, but XLA's vectorised maxima drop it.) The architecture may
be any.

Numbers can hide that something is read, behind a threshold, say. So the network's program tells
which layers an input is computed from.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
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
# Marked channels are above the ones in some examples, for maxima, and below them in others, for
# minima and what negative numbers alone pass. They change over the pixels and from channel to
# channel, for normalisation over these.
_MARKS = ((2.0, 1.0), (-0.5, -1.0))


class Flow(NamedTuple):
    """What a reader reads.

    Attributes:
        sources: Numbers of the writers that its inputs are computed from.
        reached: Which of its inputs each writer changes, bool `[writers, inputs]`.
        marked: Which examples differ at each input when all channels are marked, bool
            `[examples, inputs]`.
        codes: The examples in which the marks of each channel are, bool `[examples, channels]`.
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
    """Returns in which examples each channel is marked, bool `[examples, channels]`.

    Each is in half of them, so that what several channels change is never what one alone would.
    """
    examples = next(n for n in itertools.count(2) if math.comb(n, n // 2) >= channels)
    codes = np.zeros((examples, channels), bool)
    halves = itertools.combinations(range(examples), examples // 2)
    for channel, half in zip(range(channels), halves, strict=False):
        codes[list(half), channel] = True
    return codes


def flows(
    model: nn.Module,
    image_shape: Sequence[int],
    variables: Variables,
    writers: Mapping[Path, int],
) -> dict[Path, Flow]:
    """Finds, by reader, what it reads."""
    numbers = {name: number for number, name in enumerate(writers)}
    all_codes = _codes(max(writers.values()))
    variables = jax.tree.map(_neutral, variables)

    def inputs_when(marked: Callable[[int], Any], codes: np.ndarray) -> Any:
        inputs: dict[Any, jax.Array] = {}
        features: dict[Path, jax.Array] = {}
        examples = 1 + len(_MARKS) * len(codes)

        def write(name: Path, shape: Sequence[int]) -> jax.Array:
            number = numbers[name]
            features[name] = _features(shape, codes, number, marked(number))
            return features[name]

        def replace(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            module, outputs = context.module, call(*args, **kwargs)
            if context.method_name != "__call__" or tracers.current_trace() != level:
                return outputs
            x = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(module, nn.BatchNorm) and isinstance(module.axis, int):
                name: Any = (NORM, *module.path)
                while name in inputs:
                    name = (NORM, *name)
                inputs[name] = jnp.moveaxis(x, module.axis, -1)
            elif isinstance(module, nn.BatchNorm | nn.DenseGeneral):
                inputs[(GENERAL, *module.path)] = x
            elif is_kernel_call(context) and (path := kernel_path(module)) in writers:
                inputs[path] = x
                if outputs.shape[0] % examples == 0:  # else it works on no images
                    return write(path, outputs.shape)
            return outputs

        with nn.intercept_methods(replace):
            level = tracers.current_trace()
            images = write(IMAGES, (examples, *image_shape))
            inputs[LOGITS] = model.apply(variables, images, train=False)  # pyright: ignore
        return {name: _differing(x, codes) for name, x in inputs.items()}, features

    ones = np.ones((1, all_codes.shape[1]), bool)
    program, results = jax.make_jaxpr(
        lambda chosen: inputs_when(lambda number: chosen == number, ones), return_shape=True
    )(0)
    structure = jax.tree.structure(results)
    ends = jax.tree.unflatten(structure, program.jaxpr.outvars)
    sources = _sources(program.jaxpr, {var: numbers[name] for name, var in ends[1].items()})

    def found() -> Any:
        run = core.jaxpr_as_fun(program)
        one = lambda number: jax.tree.unflatten(structure, run(number))[0]  # noqa: E731
        reached = jax.lax.map(one, jnp.arange(len(numbers)))
        return reached, inputs_when(lambda _: True, all_codes)[0]

    reached, marked = jax.device_get(jax.jit(found)())
    return {
        name: Flow(sources.get(ends[0][name], frozenset()), reached[name][:, 0], bits, all_codes)
        for name, bits in marked.items()
    }


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
    """Returns an array that leaves features of ones near one: ones, or means over inputs."""
    return jnp.full(leaf.shape, 1 / math.prod(leaf.shape[:-1]), leaf.dtype)


def _features(shape: Sequence[int], codes: np.ndarray, number: int, marked: Any) -> jax.Array:
    """Makes the features of a layer: ones, in the first example and if it is not `marked`.

    In the others channels are marked as `codes` says, first with one of `_MARKS`, then with the
    next.
    """
    pixels = math.prod(shape) // ((1 + len(_MARKS) * len(codes)) * shape[-1])
    phases = np.modf(0.618 * np.arange(shape[-1]) + 0.382 * number)[0]
    ramp = jnp.linspace(0.0, 1.0, pixels)[None, :, None] + jnp.float32(phases)[None, None]
    bits = codes[:, None, : shape[-1]]
    marks = [jnp.where(bits, base + slope * ramp, 1.0) for base, slope in _MARKS]
    ones = jnp.ones((1, *ramp.shape[1:]))
    return jnp.where(marked, jnp.concatenate([ones, *marks]), 1.0).reshape(shape)


def _differing(x: jax.Array, codes: np.ndarray) -> jax.Array:
    """Finds which examples differ from the first one, bool `[examples, inputs]`.

    An example of `codes` differs if it does with one of `_MARKS`. All do if there are not the
    features of each example. Differences are those beyond the rounding of another place in a
    vector: marks make a difference of about 1, also in bfloat16, where this tolerates 0.09.
    """
    examples = 1 + len(_MARKS) * len(codes)
    if x.ndim < 2 or x.shape[0] % examples:
        return jnp.ones((len(codes), x.shape[-1] if x.ndim else 1), bool)
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.5
    rows = x.reshape(examples, -1, x.shape[-1])
    differs = (jnp.abs(rows - rows[:1]) > tolerance).any(1)
    return differs[1:].reshape(len(_MARKS), len(codes), -1).any(0)
