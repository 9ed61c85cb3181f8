"""Compares the prune stage's training steps with options to a plain adversarial training step.

    python -m benchmarks.options --networks cnn resnet18 --rounds 15

Every step has the same batch and PGD-10, on one device. The plain step trains the weights of a
dense network. The others prune it, with the options that are named. Each round times one step of
each, one directly after the other, every other round in reverse order, so that a temporary slowdown
affects all. A ratio is the median over the rounds of the ratios within a round.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks import jax_step, workload
from benchmarks.train_step import time_rounds, warm_up
from harp_jax import config as harp
from harp_jax import parallel
from harp_jax.config.recipes import with_recipe
from harp_jax.config.sections import minimum_rate
from harp_jax.pruning import schemes
from harp_jax.run import recipe
from harp_jax.training import state as train_state

RESULTS = Path(__file__).parent / "results" / "options.json"
PLAIN = "plain"
OPTIONS: dict[str, dict[str, Any]] = {
    "HARP": {},
    "window": {"prune.window": 0.5},
    "live": {"prune.live": True},
    "joint": {"prune.joint": True},
    "recipe best": {"prune.recipe": "best"},
}


class OptionStep:
    """The compiled training step of a configuration, with its state.

    Args:
        network: Name of the network.
        fields: Fields of the configuration; None trains a dense network.
        size: Images in a batch.
    """

    def __init__(self, network: str, fields: Mapping[str, Any] | None, size: int):
        config = harp.default()
        config.model, config.batch_size, config.data.crop_padding = network, size, 0
        config.update_from_flattened_dict(dict(fields or {}))
        config = with_recipe(config)
        model, variables = jax_step.create(network)
        live = config.prune.live
        scheme = schemes.scheme(model, workload.IMAGE_SHAPES[network], "weight", live)
        name = "pretrain" if fields is None else "prune"
        if fields is not None:
            rates = dict.fromkeys(scheme.architecture.pruned, workload.START_RATE)
            variables = scheme.make_prunable(variables, rates, minimum_rate(config))
        stage = recipe.make_stage(config, name, scheme, jax_step.BATCHES_PER_EPOCH, variables)
        devices = jax.local_devices()[:1]
        step = recipe.make_step(stage, model)
        state = train_state.create(stage, variables, workload.IMAGE_SHAPES[network])
        self.state = parallel.replicate(state, devices)
        batch = workload.random_batch(network, size)
        self.batch = {key: value[None] for key, value in batch.items()}
        self.step = parallel.parallel(step, devices, (0,))

    def seconds(self) -> float:
        """Runs one step and returns its wall time, in seconds."""
        started = time.perf_counter()
        self.state = jax.block_until_ready(self.step(self.state, self.batch))
        return time.perf_counter() - started


def ratios(times: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Computes the ratios to the plain step: median, smallest and largest over the rounds."""
    found = {}
    for name, column in times.items():
        values = [one / plain for one, plain in zip(column, times[PLAIN], strict=True)]
        found[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return found


def main() -> None:
    """Measures, prints a table, and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = sorted(workload.BATCHES)
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=known,
        default=["cnn", "resnet18"],
        help="networks to measure",
    )
    parser.add_argument("--rounds", type=int, default=15, help="timings of each side (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of results, JSON")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "device": jax.devices()[0].device_kind,
        "cores": workload.cores(),
        "rounds": options.rounds,
    }
    for network in options.networks:
        size = workload.BATCHES[network]
        print(f"{network}, batches of {size}: compiling", file=sys.stderr, flush=True)
        variants = {PLAIN: None, **OPTIONS}
        steps = {name: OptionStep(network, fields, size) for name, fields in variants.items()}
        warm_up(network, steps)
        times = time_rounds(network, steps, options.rounds)
        found[network] = {"batch": size, "seconds": times, "ratios to plain": ratios(times)}
        for name, ratio in ratios(times).items():
            seconds = statistics.median(times[name])
            spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
            print(f"{network:9} {name:25} {seconds:7.3f} s {ratio['median']:6.2f} ({spread})")
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
