"""Programs lowered for devices that are not there, as text."""

import re

import jax
from jax.sharding import Mesh, PartitionSpec

from harp_jax import parallel


def lowered(function, platform, *arguments, donate=()):
    """The program of a mapped function of one device, as `parallel.parallel` maps it.

    Args:
        function: Function of one device's arguments.
        platform: 'cuda' or 'tpu'.
        *arguments: Trees of arrays, or of their shapes, without an axis of devices.
        donate: Positions of the arguments that are donated.
    """
    mesh, spec = Mesh(jax.devices()[:1], (parallel.AXIS,)), PartitionSpec()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    shapes = jax.eval_shape(lambda *trees: trees, *arguments)
    traced = jax.jit(mapped, donate_argnums=donate).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def products(text):
    """Pairs (operation, precisions of its operands) of all products and convolutions."""
    lines = re.findall(r"stablehlo\.(dot_general|convolution)\b(.*)", text)
    return [(name, tuple(re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", rest))) for name, rest in lines]


def calls(text):
    """Targets of the calls out of the program, and its operations to and from the host."""
    targets = re.findall(r"custom_call @(\w+)", text)
    return set(targets) | set(re.findall(r"stablehlo\.(infeed|outfeed|send|recv)\b", text))
