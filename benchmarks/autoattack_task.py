"""What AutoAttack attacks in `benchmarks.accelerator`: a network trained for moments.

No images can be had on a bare machine. So every class is a smooth pattern, which each image holds
at a strength of its own under noise: the weak ones can be attacked, the strong ones cannot.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import workload
from benchmarks.autoattack import Task
from benchmarks.autoattack import ours as attacked_by_us
from benchmarks.jax_step import JaxStep
from benchmarks.modes import MODES, Sizes
from harp_jax import parallel
from harp_jax.attacks import AutoAttack
from harp_jax.data import Split
from harp_jax.pruning.layers import bake

STRENGTH, NOISE = 0.12, 0.1  # on the [0, 1] scale
CELLS = 4  # of a pattern, along each axis
LEARNING_RATE = 0.02
SEED = 0


def images(network: str, count: int, seed: int) -> Split:
    """Returns images of patterns and their classes, the same on every call.

    Args:
        network: A key of `workload.IMAGE_SHAPES`.
        count: Number of images.
        seed: Seed of strengths and noise; the patterns are always the same.

    Returns:
        Images, uint8, and labels.
    """
    height, width, channels = workload.IMAGE_SHAPES[network]
    shape = (workload.CLASSES, CELLS, CELLS, channels)
    cells = np.sign(np.random.default_rng(SEED).normal(size=shape))
    patterns = cells.repeat(-(-height // CELLS), 1).repeat(-(-width // CELLS), 2)
    random = np.random.default_rng([SEED, seed])
    labels = random.integers(0, workload.CLASSES, count, dtype=np.int32)
    strength = random.uniform(0, STRENGTH, (count, 1, 1, 1))
    noise = NOISE * random.normal(size=(count, height, width, channels))
    pixels = 0.5 + strength * patterns[labels, :height, :width] + noise
    return Split((255 * pixels.clip(0, 1)).round().astype(np.uint8), labels)


def train(step: JaxStep, sizes: Sizes) -> Task:
    """Trains the network of a plain step for a few steps; returns the task of both sides.

    Args:
        step: The step, with the state to start from, for batches of `sizes.batches[0]`.
        sizes: The sizes.

    Returns:
        The task.
    """
    network, batch = sizes.attacked, sizes.batches[0]
    split = images(network, batch * sizes.training_steps, 1)
    devices = parallel.local_devices()
    for number in range(sizes.training_steps):
        places = slice(number * batch, (number + 1) * batch)
        taken = {
            "images": split.images[places],
            "labels": split.labels[places],
            "index": np.arange(batch, dtype=np.int32),
        }
        sharded = {name: x.reshape(len(devices), -1, *x.shape[1:]) for name, x in taken.items()}
        step.state = step.step(step.state, sharded)
    variables = parallel.to_host(step.state.variables)
    return _task(sizes, jax.device_get(jax.jit(bake)(variables)))


def _task(sizes: Sizes, variables: Any) -> Task:
    count = max(count for _, count in sizes.attacks)
    split = images(sizes.attacked, count, 2)
    return Task(sizes.attacked, variables, split, workload.EPSILON, SEED, sizes.attack_batch)


def settings(sizes: Sizes) -> AutoAttack:
    """Returns the attack of both sides."""
    changed: Any = dict(sizes.attack_settings)
    return AutoAttack(workload.EPSILON, **changed)


def ours(task: Task, sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yields harp_jax' accuracies and seconds, for each mode and number of images."""
    for mode, count in sizes.attacks:
        part = task._replace(split=task.split.take(slice(count)))
        found = attacked_by_us(part, settings(sizes), MODES[mode][1])
        yield {"name": f"{mode} {count}", "mode": mode, "images": count, **found}


def save(task: Task, work: pathlib.Path) -> None:
    """Writes the network's variables for the other side."""
    leaves: Any = {"/".join(path): np.asarray(leaf) for path, leaf in _flat(task.variables).items()}
    np.savez(work / "network.npz", **leaves)


def load(sizes: Sizes, work: pathlib.Path) -> Task:
    """Reads the network that `save` wrote; its test images are made again."""
    from flax.traverse_util import unflatten_dict

    with np.load(work / "network.npz") as file:
        leaves = {tuple(name.split("/")): file[name] for name in file.files}
    return _task(sizes, unflatten_dict(leaves))


def _flat(tree: Any) -> dict[tuple[str, ...], Any]:
    from flax.traverse_util import flatten_dict

    found: Any = flatten_dict(tree)
    return found
