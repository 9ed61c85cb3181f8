"""The parts of `benchmarks.accelerator`, each run in a process of its own.

    python -m benchmarks.accelerator_parts steps --network=resnet18 --work=FOLDER

A part prints a line 'RESULT {"name": ..., ...}' as soon as something is measured, so that a part
that is killed at its limit leaves what it had. Parts of PyTorch are in `accelerator_torch`.
"""

import argparse
import concurrent.futures
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import autoattack_task, workload
from benchmarks.jax_step import JaxStep, step_operations
from benchmarks.modes import MODES, Sizes, read_sizes
from harp_jax import parallel

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch", "torchattacks")
Result = dict[str, Any]


class Program(NamedTuple):
    """A training step to measure: the batch, the mode (a key of `MODES`) and the kind."""

    batch: int
    mode: str
    kind: str


def device(sizes: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Names the device and the packages, and measures large products in every mode."""
    first = jax.devices()[0]
    yield {
        "name": "device",
        "kind": first.device_kind,
        "platform": first.platform,
        "devices": jax.device_count(),
        **_memory(),
        "python": sys.version.split()[0],
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "cores": workload.cores(),
    }
    need_accelerator(options)
    size = sizes.product
    for mode, (dtype, precision) in MODES.items():
        # Random numbers: products of ones or zeros can run faster.
        matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
        with jax.default_matmul_precision(precision):
            product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
        seconds = _median_time(lambda matrix=matrix, product=product: product(matrix, matrix), 5)
        yield {"name": f"product {mode}", "size": size, "tflops": 2 * size**3 / seconds / 1e12}


def need_accelerator(options: argparse.Namespace) -> None:
    """Ends the process if JAX finds only CPUs, and this is no dry run."""
    if not options.small and jax.default_backend() == "cpu":
        sys.exit("JAX found no accelerator")


def golden(sizes: Sizes, _: argparse.Namespace) -> Iterator[Result]:
    """Compares with the golden numbers, at the device's own precision and the highest."""
    from benchmarks.golden import errors

    for name, by_precision in errors(sizes.golden, sizes.golden_losses):
        yield {"name": name, **by_precision}


def steps(sizes: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Measures the training steps of one network: plain ones and those of HARP's pruning.

    Programs are compiled several at a time, and timed alone. So 'compile_seconds' are those of a
    compilation beside others. What is compiled is kept for `pipeline`. The network that AutoAttack
    attacks is trained for moments, too.
    """
    network = options.network
    small, *larger = sizes.batches
    # What counts most comes first and alone: AutoAttack needs it, and compiling may take a minute.
    waves = [[Program(small, "tf32", "plain")]]
    waves += [[Program(small, mode, "plain") for mode in MODES if mode != "tf32"]]
    waves[-1] += [Program(small, "tf32", "prune")]
    for size in larger:
        waves += [[Program(size, mode, "plain") for mode in MODES]]
        waves[-1] += [Program(size, "tf32", "prune")]
    waves += [[Program(size, mode, "prune") for mode in sizes.pruned] for size in sizes.batches]
    first = waves[0][0]
    for wave in waves:
        for program, step in zip(wave, _compiled(network, wave, sizes.attack_steps), strict=True):
            named = {
                "name": f"{program.kind} {program.mode} {program.batch}",
                "network": network,
                **program._asdict(),
            }
            if isinstance(step, Exception):  # the others may still run
                yield {**named, "failed": f"{type(step).__name__}: {step}".splitlines()[0]}
                continue
            start = parallel.to_host(step.state)
            operations = step_operations(network, program.batch, sizes.attack_steps)
            yield {
                **named,
                **step.costs,
                **speed(step.run, operations, program.batch),
            }
            if network == sizes.attacked and program == first:
                step.state = parallel.replicate(start, parallel.local_devices())
                autoattack_task.save(autoattack_task.train(step, sizes), options.work)
    yield {"name": "memory", **_memory()}


def _compiled(network: str, wave: list[Program], attack_steps: int) -> list[JaxStep | Exception]:
    """Builds the steps of programs, and compiles all at a time; those that fail are errors."""
    made = [
        JaxStep(
            network,
            workload.random_batch(network, program.batch),
            attack_steps,
            prune=program.kind == "prune",
            precision=MODES[program.mode][1],
            dtype=MODES[program.mode][0],
            learning_rate=autoattack_task.LEARNING_RATE,
        )
        for program in wave
    ]

    def compiled(step: JaxStep) -> JaxStep | Exception:
        try:
            step.compile()
        except Exception as error:
            return error
        return step

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(compiled, made))


def speed(run: Callable[[int], float], operations: int, batch: int) -> Result:
    """Times a step: once to warm up, then three times as many as take half a second.

    Args:
        run: Runs so many steps; returns seconds a step.
        operations: Floating-point operations of a step.
        batch: Number of images.

    Returns:
        'seconds' (the median), 'spread' (largest over smallest time), 'images_per_second' and
        'tflops'.
    """
    run(1)
    count = int(np.clip(0.5 / run(1), 1, 50))
    times = [run(count) for _ in range(3)]
    seconds = statistics.median(times)
    return {
        "seconds": seconds,
        "spread": max(times) / min(times),
        "images_per_second": batch / seconds,
        "tflops": operations / seconds / 1e12,
    }


def autoattack(sizes: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Measures AutoAttack on the network that the part of its steps has trained and left."""
    task = autoattack_task.load(sizes, options.work)
    yield from autoattack_task.ours(task, sizes, options.work)


def pipeline(sizes: Sizes, _: argparse.Namespace) -> Iterator[Result]:
    """Measures what the input pipeline costs: steps on batches that come, and on one that stays."""
    from harp_jax.data import Split, train_batches

    devices = parallel.local_devices()
    batch, steps = sizes.batches[0], sizes.piped_steps
    for network in sizes.piped:
        whole = workload.random_batch(network, batch * (steps + 2))
        split = Split(whole["images"], whole["labels"])
        one = workload.random_batch(network, batch)
        # The program of the part of its steps, which has been kept.
        step = JaxStep(
            network,
            one,
            sizes.attack_steps,
            prune=False,
            precision=MODES["tf32"][1],
            learning_rate=autoattack_task.LEARNING_RATE,
        )
        step.compile()
        step.run(2)
        resident = step.run(steps)

        def batches(split: Split = split, step: JaxStep = step) -> Iterator[Any]:
            found = train_batches(split, seed=0, epoch=0, batch_size=batch, devices=len(devices))
            return ({name: each[name] for name in step.batch} for each in found)

        started = time.perf_counter()
        count = sum(1 for _ in batches())
        host = (time.perf_counter() - started) / count
        coming = _through_pipeline(step, batches(), devices, steps)
        yield {
            "name": network,
            "batch": batch,
            "resident_seconds": resident,
            "pipeline_seconds": coming,
            "host_seconds": host,
            "share": max(0.0, 1 - resident / coming),
        }


def _through_pipeline(step: Any, batches: Iterator[Any], devices: Any, steps: int) -> float:
    """Runs steps as `training.loop` does; returns seconds a step."""
    ready = parallel.prefetch(batches, devices)
    step.state = step.step(step.state, next(ready))
    jax.block_until_ready(step.state)
    started = time.perf_counter()
    for number, batch in zip(range(1, steps + 1), ready, strict=False):
        step.state = step.step(step.state, batch)
        if number % parallel.STEPS_IN_FLIGHT == 0:
            jax.block_until_ready(step.state.step)
    jax.block_until_ready(step.state)
    return (time.perf_counter() - started) / steps


def digest(sizes: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Takes three steps and returns a digest of the state's bits."""
    from harp_jax import checkpoint

    network = options.network
    batch = workload.random_batch(network, sizes.batches[0])
    step = JaxStep(network, batch, sizes.attack_steps, prune=True)
    for number in range(3):
        step.run(1)
        variables = parallel.to_host(step.state.variables)
        yield {"name": f"step {number + 1}", "digest": checkpoint.digest(variables)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory() -> dict[str, float | None]:
    """Returns what the process has used at most, compilation included, and what it may use."""
    found = jax.devices()[0].memory_stats() or {}
    names = {"peak_in_use_mib": "peak_bytes_in_use", "allocator_limit_mib": "bytes_limit"}
    return {name: found[key] / 2**20 if key in found else None for name, key in names.items()}


def _median_time(run: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready([run() for _ in range(4)])
        times.append((time.perf_counter() - started) / 4)
    return statistics.median(times)


PARTS: dict[str, Callable[[Sizes, argparse.Namespace], Iterator[Result]]] = {
    part.__name__: part for part in (device, golden, steps, autoattack, pipeline, digest)
}


def run(parts: dict[str, Callable[[Sizes, argparse.Namespace], Iterator[Result]]]) -> None:
    """Runs the part that the command line names, and prints its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=parts, help="what to measure")
    parser.add_argument(
        "--network",
        default="resnet18",
        choices=workload.IMAGE_SHAPES,
        help="network of the parts steps and digest (%(default)s)",
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--work", type=pathlib.Path, help="folder that the parts share")
    parser.add_argument("--cifar", type=pathlib.Path, help="NPZ file of CIFAR-10")
    parser.add_argument("--runs", type=pathlib.Path, help="folder of the workdirs")
    options = parser.parse_args()
    if options.part in PARTS and options.part != "device":  # that one says more first
        need_accelerator(options)
    for result in parts[options.part](read_sizes(options.small), options):
        print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    run(PARTS)
