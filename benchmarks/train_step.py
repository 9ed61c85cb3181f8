"""Compares adversarial training steps of harp_jax and PyTorch, plain and pruning, in one run.

    python -m benchmarks.train_step --networks cnn vgg16_bn resnet18 --rounds 5
    python -m benchmarks.train_step --sides harp_jax --networks cnn   # the cost of pruning

A step is PGD-10 with the network in inference mode, a forward and backward pass in training mode,
and SGD with momentum and weight decay. The plain step trains weights, the prune step scores and
rates. harp_jax computes the masks once per step; PyTorch computes them by a full sort in every
forward pass, as the authors do. PyTorch's attack computes gradients of the images only, its update
is its fused SGD, and the faster of its memory formats counts. It needs
`pip install -e '.[benchmarks]'`.

The networks of both sides must first give the same logits for the same weights. Each round times
one step of every variant, one directly after the other, so that a temporary slowdown affects all.
A ratio is the median over the rounds of the ratios within a round. Start-up and memory are measured
in separate processes (`benchmarks.first_step`). The machine's peak is the fastest of PyTorch's and
JAX' matrix products and PyTorch's convolution, in this process.
"""

import argparse
import importlib.util
import json
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import first_step, jax_step, workload
from benchmarks.jax_step import JaxStep
from harp_jax import models, parallel

RESULTS = pathlib.Path(__file__).parent / "results" / "train_step.json"
KINDS = ("plain", "prune")
PACKAGES = ("harp_jax", "jax", "jaxlib", "flax", "numpy", "torch")
# Relative to the largest logit. At a threshold the two sides keep different ones of equal scores.
LOGITS_TOLERANCE = {"plain": 1e-4, "prune": 1e-2}
Seconds = Callable[[], float]


def say(text: str) -> None:
    """Prints progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def machine_peak(sides: list[str], repeats: int = 8) -> dict[str, float]:
    """Measures large products: the fastest of `repeats` runs of each.

    Args:
        sides: Sides to measure, of 'harp_jax' and 'torch'.
        repeats: Number of runs of each product.

    Returns:
        GFLOP/s by name.
    """
    size = 3000
    product = jax.jit(jnp.matmul)
    matrix = jnp.ones((size, size), jnp.float32)
    runs: dict[str, tuple[int, Callable[[], Any]]] = {
        "jax matmul": (2 * size**3, lambda: jax.block_until_ready(product(matrix, matrix)))
    }
    if "torch" in sides:
        from benchmarks.torch_step import large_products

        runs |= large_products(size)
    for _, run in runs.values():
        run()
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, (_, run) in runs.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: operations / best[name] / 1e9 for name, (operations, _) in runs.items()}


def check_same_network(network: str, batch: Mapping[str, np.ndarray], steps: Mapping[str, Any]):
    """Checks that PyTorch's networks give the logits of harp_jax before the first step.

    Raises:
        ValueError: If the logits differ.
    """
    _, variables = jax_step.create(network)
    for kind in KINDS:
        ours = jax_step.pruned(variables) if kind == "prune" else variables
        expected = jax_step.logits(network, ours, batch["images"])
        for name, step in steps.items():
            if name.startswith(f"torch {kind}"):
                error = np.abs(step.logits() - expected).max() / np.abs(expected).max()
                say(f"{network}, {name}: logits within {error:.1e} of harp_jax's")
                if not error < LOGITS_TOLERANCE[kind]:
                    raise ValueError(f"{network}, {name}: logits differ by {error:.1e}")


def make_steps(network: str, batch: dict[str, np.ndarray], options: Any) -> dict[str, Any]:
    """Builds the steps to time; names are '<side> <kind>', for PyTorch with the format."""
    steps: dict[str, Any] = {
        f"harp_jax {kind}": JaxStep(network, batch, options.steps, prune=kind == "prune")
        for kind in KINDS
    }
    if "torch" not in options.sides:
        return steps
    from benchmarks.torch_step import FORMATS, TorchStep

    _, variables = jax_step.create(network)
    arrays = jax_step.layer_arrays(network, variables)
    wanted = [(kind, layout, False) for kind in KINDS for layout in FORMATS]
    wanted += [("plain", layout, True) for layout in FORMATS if options.compile]
    for kind, layout, compiled in wanted:
        steps[f"torch {kind} {layout}" + " compiled" * compiled] = TorchStep(
            network,
            batch,
            options.steps,
            prune=kind == "prune",
            memory_format=layout,
            compiled=compiled,
            arrays=arrays,
        )
    check_same_network(network, batch, steps)
    return steps


def warm_up(network: str, steps: dict[str, Any]) -> dict[str, str]:
    """Runs every step twice; removes those that `torch.compile` cannot run, returns reasons."""
    failures = {}
    for name, step in list(steps.items()):
        try:
            say(f"{network}, {name}: first steps {step.seconds():.2f} s, {step.seconds():.2f} s")
        except Exception as error:
            if not name.endswith("compiled"):
                raise
            failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            say(f"{network}, {name}: {failures[name]}")
            del steps[name]
    return failures


def time_rounds(network: str, steps: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
    """Times every step once per round, in seconds; every other round runs in reverse order."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in list(steps)[:: -1 if number % 2 else 1]:
            times[name].append(steps[name].seconds())
        row = ", ".join(f"{name} {column[-1]:.3f}" for name, column in times.items())
        say(f"{network}, round {number + 1}: {row}")
    return times


def fastest(times: Mapping[str, list[float]], prefix: str, *, eager: bool = False) -> str | None:
    """Returns the name of the fastest step (by median) with a prefix; None without any."""
    names = [name for name in times if name.startswith(prefix)]
    names = [name for name in names if not (eager and name.endswith("compiled"))]
    return min(names, key=lambda name: statistics.median(times[name]), default=None)


def ratios(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Computes ratios of times within a round: median, smallest and largest over the rounds.

    PyTorch counts with its fastest step of each kind. Its cost of pruning is a ratio of eager
    steps, since only the plain step is ever compiled.
    """
    pairs: list[tuple[str | None, str | None]] = [
        (fastest(times, f"torch {kind}"), f"harp_jax {kind}") for kind in KINDS
    ]
    for side in first_step.SIDES:
        plain, prune = (fastest(times, f"{side} {kind}", eager=True) for kind in KINDS)
        pairs.append((prune, plain))
    found = {}
    for above, below in pairs:
        if above is not None and below is not None:
            values = [a / b for a, b in zip(times[above], times[below], strict=True)]
            found[f"{above} / {below}"] = {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
    return found


def start_ups(network: str, batch: int, options: Any, names: list[str]) -> dict[str, Any]:
    """Runs `first_step.measure` for the steps: 'cold', for harp_jax also 'warm' from its cache."""
    found: dict[str, Any] = {}
    for name in names:
        side, kind, *layout = name.split()
        arguments: Any = (side, network, batch, options.steps)
        keywords: Any = {"prune": kind == "prune"}
        if side == "torch":
            keywords["memory_format"] = layout[0]
            found[name] = {"cold": first_step.measure(*arguments, **keywords)}
        else:
            with tempfile.TemporaryDirectory() as cache:
                found[name] = {
                    start: first_step.measure(
                        *arguments, devices=options.devices, cache=cache, **keywords
                    )
                    for start in ("cold", "warm")
                }
        say(f"{network}, {name}: {found[name]}")
    return found


def measure(network: str, options: Any, peak: float) -> dict[str, Any]:
    """Measures one network; returns its entry of the JSON file."""
    size = options.batch or workload.BATCHES.get(network, 64)
    batch = workload.random_batch(network, size)
    operations = jax_step.step_operations(network, size, options.steps)
    steps = make_steps(network, batch, options)
    failures = warm_up(network, steps)
    times = time_rounds(network, steps, options.rounds)
    del steps
    kinds = [f"{side} {kind}" for kind in KINDS for side in options.sides]
    starting = [name for kind in kinds if (name := fastest(times, kind, eager=True))]
    best = [fastest(times, kind) for kind in kinds]
    rows = {}
    for name, column in times.items():
        median = statistics.median(column)
        rows[name] = {
            "fastest_of_its_kind": name in best,
            "seconds": {"median": median, "min": min(column), "max": max(column), "all": column},
            "images_per_second": size / median,
            "gflop_per_second": operations / median / 1e9,
            "share_of_peak": operations / median / 1e9 / peak,
        }
    return {
        "batch": size,
        "rounds": options.rounds,
        "attack_steps": options.steps,
        "operations_per_step": operations,
        "steps": rows,
        "failed": failures,
        "ratios": ratios(times),
        "first_steps": start_ups(network, size, options, starting),
    }


def table(network: str, result: Mapping[str, Any]) -> str:
    """Formats a network's numbers as a table; * marks the fastest step of each side and kind.

    'cold' and 'warm' are the times of the first step without and with JAX' cache of compiled
    programs, each followed by the peak memory of its process.
    """
    heads = ("s/step", "images/s", "GFLOP/s", "of peak", "cold, s", "MiB", "warm, s", "MiB")
    title = f"{network}, batch {result['batch']}, PGD-{result['attack_steps']}"
    lines = [f"{title:40}" + "".join(f"{head:>10}" for head in heads)]
    for name, row in result["steps"].items():
        cells = [
            f"{row['seconds']['median']:.3f}",
            f"{row['images_per_second']:.1f}",
            f"{row['gflop_per_second']:.1f}",
            f"{row['share_of_peak']:.0%}",
        ]
        for start in result["first_steps"].get(name, {}).values():
            cells += [f"{start['first_step_s']:.2f}", f"{start['peak_memory_mib']:.0f}"]
        mark = " *" if row["fastest_of_its_kind"] else ""
        lines.append(f"{name + mark:40}" + "".join(f"{cell:>10}" for cell in cells))
    lines += [f"{name:40}  failed: {reason}" for name, reason in result["failed"].items()]
    for name, ratio in result["ratios"].items():
        extremes = f"({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(f"  {name:64} {ratio['median']:6.2f} {extremes}")
    return "\n".join(lines)


def processor() -> str:
    """Returns the name of the processor, or of the JAX device if the system does not tell."""
    information = pathlib.Path("/proc/cpuinfo")
    found = information.exists() and re.search(r"model name\s*: (.*)", information.read_text())
    return found[1] if found else jax.devices()[0].device_kind


def versions(sides: list[str]) -> dict[str, str]:
    """Returns the versions of the packages in use."""
    names = [name for name in PACKAGES if name != "torch" or "torch" in sides]
    return {name: metadata.version(name) for name in names}


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    networks = sorted(models.MODELS.keys() & workload.IMAGE_SHAPES)
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=networks,
        default=list(workload.BATCHES),
        help="networks to measure",
    )
    parser.add_argument(
        "--sides",
        nargs="+",
        choices=first_step.SIDES,
        default=list(first_step.SIDES),
        help="what to compare",
    )
    parser.add_argument("--rounds", type=int, default=5, help="timings of each side (%(default)s)")
    parser.add_argument("--batch", type=int, help="images; by default the network's own number")
    parser.add_argument("--steps", type=int, default=workload.ATTACK_STEPS, help="of the attack")
    parser.add_argument("--devices", type=int, help="of harp_jax; by default one for each core")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument(
        "--output", type=pathlib.Path, default=RESULTS, help="file of results, JSON"
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds={options.rounds}: at least 1 is needed")
    if "torch" in options.sides and importlib.util.find_spec("torch") is None:
        parser.error("--sides torch: PyTorch is missing, pip install -e '.[benchmarks]' brings it")
    return options


def main() -> None:
    """Prints a table per network and writes all numbers."""
    options = parse()
    if "torch" in options.sides:
        from benchmarks.torch_step import use_all_cores

        use_all_cores()
    sizes = [options.batch or workload.BATCHES.get(network, 64) for network in options.networks]
    parallel.one_device_per_core(sizes, options.devices)
    peaks = machine_peak(options.sides)
    results: dict[str, Any] = {
        "processor": processor(),
        "cores": workload.cores(),
        "devices": jax.local_device_count(),
        "versions": versions(options.sides),
        "peak_gflop_per_second": peaks,
        "networks": {},
    }
    shown = ", ".join(f"{name} {value:.0f}" for name, value in peaks.items())
    print(
        f"{results['processor']}, {results['cores']} cores, {results['devices']} XLA devices;"
        f" peak GFLOP/s: {shown}",
        flush=True,
    )
    for network in options.networks:
        result = measure(network, options, max(peaks.values()))
        results["networks"][network] = result
        print("\n" + table(network, result), flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
