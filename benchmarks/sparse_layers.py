"""Finds where computing with kept weights alone stops to pay, layer by layer.

    python -m benchmarks.sparse_layers

Measures what an attack does with a layer: convolution, ReLU and the gradient for the images, three
times in a loop, on a device per core, with a random mask. Dense and sparse are timed directly one
after the other; the ratio is the median over the rounds.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from harp_jax import ops, parallel
from harp_jax.ops import sparse_conv
from harp_jax.ops.sparse_conv import Kept

# (size of the kernel, stride, size of the images, input channels, output channels)
LAYERS = [
    (3, 1, 28, 1, 16),
    (3, 1, 14, 16, 32),
    (3, 1, 7, 32, 64),
    (3, 1, 32, 3, 64),
    (3, 1, 32, 64, 64),
    (3, 1, 16, 64, 128),
    (3, 1, 16, 128, 128),
    (3, 1, 8, 256, 256),
    (3, 1, 4, 512, 512),
    (3, 1, 2, 512, 512),
    (3, 2, 32, 64, 128),
    (3, 2, 8, 256, 512),
    (1, 2, 32, 64, 128),
    (1, 1, 8, 256, 1024),
    (7, 2, 64, 3, 64),
    (1, 1, 1, 576, 128),
    (1, 1, 1, 2048, 256),
    (1, 1, 1, 256, 10),
]
RATES = [0.01, 0.05, 0.1, 0.2, 0.4]
BATCH, STEPS = 64, 3
RESULTS = pathlib.Path(__file__).parent / "results" / "sparse_layers.json"
Function = Callable[[jax.Array, jax.Array], jax.Array]


def attack(convolve: Function) -> Function:
    """Returns a function of (images, kernel): three steps of forward pass and image gradient."""

    def value(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (jax.nn.relu(convolve(x, kernel)) ** 2).sum()

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.fori_loop(0, STEPS, lambda _, x: x + jax.grad(value)(x, kernel), x)

    return run


def sides(layer: tuple[int, ...], kept: Kept) -> tuple[Function, Function]:
    """Returns the dense and the sparse form."""
    kernel_size, stride = layer[:2]
    low = (kernel_size - 1) // 2
    pads = (low, kernel_size - 1 - low)
    strides, padding = (stride, stride), (pads, pads)

    def dense(x: jax.Array, kernel: jax.Array) -> jax.Array:
        if layer[0] == layer[2] == 1:
            return (x.reshape(len(x), -1) @ kernel[0, 0]).reshape(len(x), 1, 1, -1)
        numbers = ("NHWC", "HWIO", "NHWC")
        return ops.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    def sparse(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return sparse_conv.conv(x, kept.values(kernel), kept, strides, padding)

    return attack(dense), attack(sparse)


def seconds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """Returns the wall time of one call, in seconds."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def compare(layer: tuple[int, ...], rate: float, rounds: int) -> dict[str, Any]:
    """Measures a layer; returns a row."""
    kernel_size, _, size, inputs, outputs = layer
    devices, generator = parallel.local_devices(), np.random.default_rng(0)
    shape = (kernel_size, kernel_size, inputs, outputs)
    mask = generator.random(shape) < rate
    kernel = 1e-3 * generator.normal(size=shape).astype(np.float32) * mask
    images = generator.normal(size=(len(devices), BATCH // len(devices), size, size, inputs))
    arguments = (np.float32(images), parallel.replicate(jnp.asarray(kernel), devices))
    both = [parallel.parallel(side, devices) for side in sides(layer, Kept.of(mask))]
    for function in both:
        seconds(function, arguments)
    times = [[seconds(function, arguments) for function in both] for _ in range(rounds)]
    dense, sparse = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "layer": layer,
        "rate": rate,
        "dense_ms": round(1e3 * dense, 3),
        "sparse_ms": round(1e3 * sparse, 3),
        "ratio": round(statistics.median(one / other for one, other in times), 2),
    }


def main() -> None:
    """Measures, prints each row, and writes benchmarks/results/sparse_layers.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="timings of each side")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="file of results, JSON")
    flags = parser.parse_args()
    parallel.one_device_per_core([BATCH])
    rows = []
    for layer in LAYERS:
        for rate in RATES:
            rows.append(compare(layer, rate, flags.rounds))
            print(json.dumps(rows[-1]), flush=True)
    machine = {"jax": jax.__version__, "devices": parallel.names(parallel.local_devices())}
    flags.out.write_text(json.dumps({**machine, "batch": BATCH, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
