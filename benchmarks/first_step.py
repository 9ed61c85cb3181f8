"""Measures start-up time and memory of one side, in a process of its own.

    python -m benchmarks.first_step --side harp_jax --network cnn --batch 128
    python -m benchmarks.first_step --side harp_jax --network cnn --batch 128 --rate 0.01

Prints one line of JSON: seconds for imports, set-up, first and second step, and the peak memory of
the process in MiB. JAX caches compiled programs in JAX_COMPILATION_CACHE_DIR, if it is set.
`measure` runs this module from another process.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks import workload

SIDES = ("harp_jax", "torch")


def measure(
    side: str,
    network: str,
    batch: int,
    attack_steps: int,
    *,
    prune: bool,
    memory_format: str = "contiguous",
    devices: int | None = None,
    cache: str | None = None,
) -> dict[str, float]:
    """Runs this module in a process of its own.

    Args:
        side: One of `SIDES`.
        network: Name of the network.
        batch: Number of images.
        attack_steps: Number of PGD steps.
        prune: Whether to run a `harp` prune step instead of a plain one.
        memory_format: Memory format of PyTorch.
        devices: Number of XLA devices of harp_jax; None means one per core.
        cache: Folder for JAX' compiled programs; None means no cache.

    Returns:
        Seconds and MiB by name, as the process prints them.

    Raises:
        subprocess.CalledProcessError: If the process fails.
    """
    command = [sys.executable, "-m", "benchmarks.first_step", f"--side={side}"]
    command += [f"--network={network}", f"--batch={batch}", f"--steps={attack_steps}"]
    command += [f"--format={memory_format}"] + ["--prune"] * prune
    command += [f"--devices={devices}"] * (devices is not None)
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        # Like `harp_jax.main`: cache all programs, also small ones that compile fast.
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    return json.loads(printed)


def peak_memory() -> float:
    """Returns the peak resident memory of this process so far, in MiB."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # ru_maxrss survives exec: a child would start with the size of its parent.
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        if found:
            return int(found[1]) / 2**10
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def make_step(side: str, options: argparse.Namespace) -> tuple[Any, float]:
    """Builds a side's step; returns it and the time at which its imports were done."""
    batch = workload.random_batch(options.network, options.batch)
    if side == "harp_jax":
        from benchmarks.jax_step import JaxStep
        from harp_jax import native, parallel

        native.return_freed_memory_after_compiling()
        parallel.one_device_per_core([options.batch], options.devices)
        imported = time.perf_counter()
        step = JaxStep(
            options.network, batch, options.steps, prune=options.prune, rate=options.rate
        )
        return step, imported
    from benchmarks.torch_step import TorchStep, use_all_cores

    imported = time.perf_counter()
    use_all_cores()
    step = TorchStep(
        options.network, batch, options.steps, prune=options.prune, memory_format=options.format
    )
    return step, imported


def main() -> None:
    """Measures and prints the line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=SIDES, required=True, help="what to measure")
    parser.add_argument(
        "--network",
        choices=sorted(workload.IMAGE_SHAPES),
        required=True,
        help="network to measure",
    )
    parser.add_argument("--batch", type=int, required=True, help="images of a step")
    parser.add_argument("--steps", type=int, default=workload.ATTACK_STEPS, help="of the attack")
    parser.add_argument("--prune", action="store_true", help="a harp prune step")
    parser.add_argument("--rate", type=float, help="of harp_jax: keeps this share, sparsely")
    parser.add_argument("--devices", type=int, help="of harp_jax; by default one for each core")
    parser.add_argument("--format", default="contiguous", help="PyTorch's memory format")
    options = parser.parse_args()
    started = time.perf_counter()
    step, imported = make_step(options.side, options)
    set_up = time.perf_counter()
    first, second = step.seconds(), step.seconds()
    numbers = {
        "import_s": imported - started,
        "set_up_s": set_up - imported,
        "first_step_s": first,
        "second_step_s": second,
        "peak_memory_mib": peak_memory(),
    }
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
