"""Compares convolutions of `harp_jax.ops` and `jax.lax` on this machine, layer by layer.

    python -m benchmarks.convolution --network cnn --rounds 9

Each round times both implementations, one directly after the other, so that a temporary slowdown
affects both. The ratio is the median over the rounds. The input gradient is computed in a
`fori_loop` of three steps, as in an attack.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from harp_jax import ops

# (image size, input channels, output channels); all are 3x3 with padding 'SAME'.
LAYERS = {
    "cnn": [(28, 1, 16), (14, 16, 32), (7, 32, 64)],
    "vgg16": [
        (32, 3, 64),
        (32, 64, 64),
        (16, 64, 128),
        (16, 128, 128),
        (8, 128, 256),
        (8, 256, 256),
        (4, 256, 512),
        (4, 512, 512),
        (2, 512, 512),
    ],
}
BATCH = {"cnn": 128, "vgg16": 32}
STEPS = 3  # of the loop around the input gradient

Function = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def passes(convolve: Callable[..., jax.Array]) -> Iterator[tuple[str, int, Function]]:
    """Yields name, number of convolutions, and function of (images, filters, output gradient)."""

    def forward(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        del g
        return convolve(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        def step(_: int, x: jax.Array) -> jax.Array:
            # The dependence of g on x keeps the gradient inside the loop.
            return jax.vjp(lambda x: forward(x, w, g), x)[1](g + x[0, 0, 0, 0])[0]

        return lax.fori_loop(0, STEPS, step, x)

    def kernel_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: forward(x, w, g), w)[1](g)[0]

    yield "forward", 1, forward
    yield "input gradient in a loop", STEPS, input_gradient
    yield "kernel gradient", 1, kernel_gradient


def seconds(function: Callable[..., jax.Array], arguments: tuple[jax.Array, ...]) -> float:
    """Returns the wall time of one call, in seconds."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def compare(layer: tuple[int, int, int], batch: int, rounds: int) -> None:
    """Prints one row of the table for each pass of a layer."""
    size, inputs, outputs = layer
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(batch, size, size, inputs), (3, 3, inputs, outputs), (batch, size, size, outputs)]
    # Small values: the loop feeds each gradient back as the next images.
    arguments = tuple(0.01 * jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    operations = 2 * batch * size**2 * 9 * inputs * outputs
    both = zip(passes(ops.conv_general_dilated), passes(lax.conv_general_dilated), strict=True)
    for (name, count, ours), (_, _, theirs) in both:
        functions = jax.jit(ours), jax.jit(theirs)
        results = [function(*arguments) for function in functions]  # compiles
        error = jnp.max(jnp.abs(results[0] - results[1])) / jnp.max(jnp.abs(results[1]))
        times = [[seconds(function, arguments) for function in functions] for _ in range(rounds)]
        ratio = statistics.median(native / own for own, native in times)
        own, native = (statistics.median(column) / count for column in zip(*times, strict=True))
        print(
            f"{size:3}x{size:<3}{inputs:4} ->{outputs:4}  {name:26}"
            f"{1e3 * own:9.2f}{1e3 * native:10.2f}{ratio:8.2f}"
            f"{operations / own / 1e9:9.0f}{operations / native / 1e9:8.0f}{error:10.0e}",
            flush=True,
        )


def main() -> None:
    """Parses the flags and prints a table for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network",
        choices=[*LAYERS, "all"],
        default="all",
        help="network to measure (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timings of each implementation")
    parser.add_argument("--batch", type=int, help="images; by default the network's own number")
    flags = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}; ms and GFLOP/s per convolution")
    for network in LAYERS if flags.network == "all" else [flags.network]:
        batch = flags.batch or BATCH[network]
        print(f"\n{network}, batch {batch}")
        print(f"{'layer':18}{'pass':29}{'ops ms':>6}{'lax ms':>10}{'ratio':>8}", end="")
        print(f"{'ops GF/s':>9}{'lax GF/s':>9}{'error':>9}")
        for layer in LAYERS[network]:
            compare(layer, batch, flags.rounds)


if __name__ == "__main__":
    main()
