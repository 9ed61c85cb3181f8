"""Compares ways to compute masks: bisection on the bits of floats, sorting, and `lax.top_k`.

    python -m benchmarks.masks --network vgg16_bn

For each layer of the network it times harp_jax's mask, the mask by a full sort of |scores| (as in
the authors' code), and `lax.top_k`, which needs the count at compile time. Each round times all
three, one directly after the other; ratios are medians over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.workload import BATCHES, IMAGE_SHAPES
from harp_jax import models
from harp_jax.pruning.layers import kernel_paths, layer_name, leaves_by_path
from harp_jax.pruning.masks import kept_weights, weight_mask

NETWORKS = sorted(models.MODELS.keys() & BATCHES)


def sorted_mask(scores: jax.Array, rate: jax.Array) -> jax.Array:
    """Computes the mask by a stable full sort, with a traced rate."""
    magnitudes = jnp.abs(scores).ravel()
    order = jnp.argsort(-magnitudes, stable=True)
    kept = jnp.arange(magnitudes.size) < kept_weights(rate, magnitudes.size)
    return jnp.zeros(magnitudes.size).at[order].set(kept).reshape(scores.shape)


def top_k_mask(scores: jax.Array, rate: jax.Array, count: int) -> jax.Array:
    """Computes the mask by `lax.top_k`, which needs the count as a constant."""
    del rate
    places = lax.top_k(jnp.abs(scores).ravel(), count)[1]
    return jnp.zeros(scores.size).at[places].set(1.0).reshape(scores.shape)


def seconds(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Returns the wall time of one call, in seconds."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--network", choices=NETWORKS, default="vgg16_bn", help="network to measure (%(default)s)"
    )
    parser.add_argument("--rate", type=float, default=0.1, help="share that is kept (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side (%(default)s)")
    options = parser.parse_args()
    model = models.create(options.network, 10)
    images = jnp.zeros((1, *IMAGE_SHAPES[options.network]))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    rate, totals = jnp.float32(options.rate), [0.0, 0.0, 0.0]
    print(f"{'layer':8} {'weights':>9} {'bisection':>10} {'sort':>10} {'top_k':>10} {'speedup':>8}")
    for path in kernel_paths(params):
        scores = leaves_by_path(params)[path]
        count = int(kept_weights(rate, scores.size))
        masks = [
            jax.jit(weight_mask),
            jax.jit(sorted_mask),
            jax.jit(lambda scores, rate, count=count: top_k_mask(scores, rate, count)),
        ]
        results = [mask(scores, rate) for mask in masks]
        assert all(bool((result == results[0]).all()) for result in results)
        times = [[seconds(mask, scores, rate) for mask in masks] for _ in range(options.rounds)]
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(row[1] / row[0] for row in times)
        totals = [total + median for total, median in zip(totals, medians, strict=True)]
        shown = " ".join(f"{1e3 * median:7.2f} ms" for median in medians)
        print(f"{layer_name(path):8} {scores.size:9} {shown} {ratio:7.1f}x")
    shown = " ".join(f"{1e3 * total:7.2f} ms" for total in totals)
    print(f"{'total':18} {shown} {totals[1] / totals[0]:7.1f}x")


if __name__ == "__main__":
    main()
