"""What pruning costs: time of a `harp` prune step over that of a plain adversarial step.

    python -m benchmarks.pruning_cost --network vgg16_bn --batch 64

Same network, batch, PGD-10 attack and optimiser. The steps alternate within each round, so that a
machine that slows down slows both; the ratio is the median over the rounds.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.masks import IMAGE_SHAPES
from harp_jax import models
from harp_jax.attacks import PGD
from harp_jax.data import to_unit
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import make_prunable, tree_of_leaves
from harp_jax.training import optim, parallel
from harp_jax.training import state as train_state
from harp_jax.training.step import OBJECTIVES, make_train_step

TARGET, MINIMUM = 0.01, 0.001


class Step:
    """A compiled training step of one mode and the state it moves along."""

    def __init__(self, network: str, mode: str, batch: dict[str, np.ndarray], steps: int):
        model = models.create(network, 10, axis_name=parallel.AXIS)
        images = jnp.zeros((1, *batch["images"].shape[2:]))
        variables: Any = jax.jit(model.init)(jax.random.key(0), images)
        sizes = parameter_costs(variables["params"])
        gradient = None
        if mode == "harp":
            variables = make_prunable(variables, dict.fromkeys(sizes, 0.1), MINIMUM, "weight")
            gradient = add_compression_gradient(tree_of_leaves(sizes), TARGET, MINIMUM, 0.01, 390)
        optimizer = optim.optimizer(lambda _: 1e-3, 0.9, 5e-4, gradient)
        step = make_train_step(
            model,
            OBJECTIVES["pgd"],
            PGD(0.031, 0.0078, steps),
            optimizer,
            mode,
            lambda images, keys: to_unit(images),
            390,
        )
        devices = parallel.local_devices(1)
        state = train_state.create(variables, mode, optimizer, 0)
        self.state = parallel.replicate(state, devices)
        self.batch = batch
        self.step = parallel.parallel(step, devices, donate_argnums=(0,))

    def seconds(self) -> float:
        """Wall time of one step."""
        started = time.perf_counter()
        self.state = jax.block_until_ready(self.step(self.state, self.batch))
        return time.perf_counter() - started


def main() -> None:
    """Prints both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=sorted(IMAGE_SHAPES), default="vgg16_bn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of the attack")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    shape = (1, options.batch, *IMAGE_SHAPES[options.network])
    batch = {
        "images": random.integers(0, 256, shape, dtype=np.uint8),
        "labels": random.integers(0, 10, shape[:2], dtype=np.int32),
        "index": np.arange(options.batch, dtype=np.int32)[None],
    }
    plain, prune = (
        Step(options.network, mode, batch, options.steps) for mode in ("pretrain", "harp")
    )
    for step in (plain, prune):
        print(f"first step, with compilation: {step.seconds():.1f} s")
    rounds = [(plain.seconds(), prune.seconds()) for _ in range(options.rounds)]
    for name, times in zip(("plain", "harp"), zip(*rounds, strict=True), strict=True):
        median = statistics.median(times)
        print(f"{name:5} step: {median:.3f} s, {options.batch / median:.1f} images/s")
    ratios = [prune / plain for plain, prune in rounds]
    print(
        f"harp / plain: {statistics.median(ratios):.3f} (median of {options.rounds} rounds,"
        f" {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
