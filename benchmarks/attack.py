"""Times PGD-10 with different forms of convolutions and numbers of images at once, side by side.

    python -m benchmarks.attack --networks cnn vgg16_bn resnet18

'winograd' is the number of channels, in*out / (in + out), from which a convolution is computed in
Winograd's form (`harp_jax.ops.cpu_conv`); 'group' is the number of images that a device attacks at
once, 0 for all (`harp_jax.attacks.groups`). The sparse network keeps a hundredth of the weights. A
device per core; each round times one attack of every kind, one directly after the other, and times
are medians over the rounds. Prints a line for each kind.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks import workload
from benchmarks.jax_step import create, masked
from harp_jax import models, native, parallel
from harp_jax.attacks import PGD
from harp_jax.attacks.groups import InGroups
from harp_jax.models.sparse import SparseNetwork, kept_weights
from harp_jax.ops import cpu_conv

GROUPS, WINOGRAD = (0, 16, 32), (40, 30, 16)
RATE = 0.01  # kept share of the sparse network
PLAIN = PGD(workload.EPSILON, workload.STEP_SIZE, steps=workload.ATTACK_STEPS)


def program(network: Any, group: int) -> Callable[..., jax.Array]:
    """Returns the attack as a function of (variables, images, labels)."""
    attack = InGroups(PLAIN, group) if group else PLAIN

    def run(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), len(images))
        logits_fn = models.logits_fn(network, variables)
        return attack(logits_fn, images, labels, keys)

    return run


def compiled(network: Any, group: int, channels: int, arguments: tuple[Any, ...]) -> Any:
    """Compiles an attack with a threshold for Winograd's form."""
    jax.clear_caches()  # the threshold is read while the network is traced
    maker = {native.processor_maker(): channels}
    with mock.patch.object(cpu_conv, "_WINOGRAD_CHANNELS", maker):
        mapped: Any = parallel.parallel(program(network, group), parallel.local_devices())
        return mapped.lower(*arguments).compile()


def measure(name: str, rounds: int) -> None:
    """Times every kind of a network's attack, and prints the medians."""
    devices = parallel.local_devices()
    dense, variables = create(name)
    variables = masked(variables, RATE)
    sparse = SparseNetwork(dense, kept_weights(variables["params"]))
    batch = workload.random_batch(name, workload.BATCHES[name])
    split = {key: each.reshape(len(devices), -1, *each.shape[1:]) for key, each in batch.items()}
    images = np.float32(split["images"]) / 255
    arguments = parallel.replicate(variables, devices), images, split["labels"]
    kinds = [("dense", dense, group, channels) for channels in WINOGRAD for group in GROUPS]
    kinds += [("sparse", sparse, group, WINOGRAD[0]) for group in GROUPS]
    attacks = [(*kind, compiled(*kind[1:], arguments)) for kind in kinds]
    times: list[list[float]] = [[] for _ in attacks]
    for _ in range(rounds + 1):
        for seconds, (*_, attack) in zip(times, attacks, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(attack(*arguments))
            seconds.append(time.perf_counter() - started)
    for seconds, (form, _, group, channels, _) in zip(times, attacks, strict=True):
        row = {"network": name, "form": form, "winograd": channels, "group": group}
        row["ms"] = round(1e3 * statistics.median(seconds[1:]), 1)
        print(json.dumps(row), flush=True)


def main() -> None:
    """Measures the networks that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=workload.BATCHES,
        default=["cnn"],
        help="networks to measure",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side (%(default)s)")
    flags = parser.parse_args()
    parallel.one_device_per_core(list(workload.BATCHES.values()))
    print(json.dumps({"processor": native.processor_maker(), "jax": jax.__version__}))
    for name in flags.networks:
        measure(name, flags.rounds)


if __name__ == "__main__":
    main()
