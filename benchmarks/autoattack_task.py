"""What AutoAttack attacks in `benchmarks.accelerator`: a network trained for moments.

No images can be had on a bare machine. So every class is a smooth pattern, which each image holds
at a strength of its own under noise: the weak ones can be attacked, the strong ones cannot.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import workload
from benchmarks.autoattack import NAMES, Task, packed_attack
from benchmarks.jax_step import JaxStep
from benchmarks.modes import MODES, Sizes
from harp_jax import parallel
from harp_jax.attacks import AutoAttack
from harp_jax.data import Split
from harp_jax.evaluation import ROBUST, PackedAttack
from harp_jax.interrupt import InterruptedRunError
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
    return Task(sizes.attacked, variables, split, sizes.attack_epsilon, SEED, sizes.attack_batch)


def settings(sizes: Sizes) -> AutoAttack:
    """Returns the attack of both sides."""
    changed: Any = dict(sizes.attack_settings)
    return AutoAttack(sizes.attack_epsilon, **changed)


def planned(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Yields what a side is to attack, before anything of it is measured."""
    for mode, count in sizes.attacks:
        left = ["natural", *NAMES]
        yield {"name": f"{mode} {count}", "mode": mode, "images": count, "after": {}, "left": left}


def ours(task: Task, sizes: Sizes, work: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Measures harp_jax' AutoAttack, for each mode and number of images.

    Args:
        task: The task.
        sizes: The sizes.
        work: Folder for the attacks' progress.

    Yields:
        First what is planned; then, again and again for each of that, accuracies 'after' each
        attack, 'seconds', those without compilation ('seconds_compiled', 'seconds_compiled_each'),
        and what is 'left'.
    """
    yield from planned(sizes)
    compiling = compile_clock()
    modes = dict.fromkeys(mode for mode, _ in sizes.attacks)
    packed = {mode: packed_attack(task, settings(sizes), MODES[mode][1]) for mode in modes}
    for each in planned(sizes):
        part = task._replace(split=task.split.take(slice(each["images"])))
        path = epath.Path(work) / f"{each['name']}.npz"
        for found in _attacked(packed[each["mode"]], part, path, compiling):
            yield {**each, **found}


def _attacked(
    packed: PackedAttack, task: Task, path: epath.Path, compiling: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Yields what is there after each attack; it stops there, and goes on from its progress."""
    plain = parallel.replicate(task.variables, parallel.local_devices())
    left, after, compiled, seconds = list(packed.names), {}, {}, 0.0

    def finished() -> list[str]:
        return [name for name in left if _is_finished(packed, path, name)]

    while left:
        started, before = time.perf_counter(), compiling()
        with contextlib.suppress(InterruptedRunError):
            packed(plain, task.split, "harp_jax", path, lambda: bool(finished()))
        whole = time.perf_counter() - started
        this = whole - (compiling() - before)
        seconds += whole
        with np.load(path) as progress:
            broken_by, excess = progress["broken_by"], float(progress["excess"])
        for name in finished():  # more than one only where no image is left
            alive = (broken_by == ROBUST) | (broken_by > packed.names.index(name))
            after[name], compiled[name], this = float(alive.mean()), this, 0.0
            left.remove(name)
        yield {
            "after": dict(after),
            "seconds": seconds,
            "seconds_compiled": sum(compiled.values()),
            "seconds_compiled_each": dict(compiled),
            "left": list(left),
            "largest_excess": excess,
        }


def _is_finished(packed: PackedAttack, path: epath.Path, name: str) -> bool:
    """Says whether no image waits for an attack any more, by the file of the progress."""
    rounds = [each for each, _ in packed.rounds(workload.CLASSES)]
    last = len(rounds) - rounds[::-1].index(name)
    with np.load(path) as progress:
        passed = progress["passed"][progress["broken_by"] == ROBUST]
    return bool((passed >= last).all())


def compile_clock() -> Callable[[], float]:
    """Returns a function that says how many seconds JAX has traced and compiled since this call."""
    spans: list[tuple[float, float]] = []  # without overlap, in order; inner ones end first

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            end = time.perf_counter()
            start = end - duration_secs
            while spans and spans[-1][1] > start:
                start = min(start, spans.pop()[0])
            spans.append((start, end))

    jax.monitoring.register_event_duration_secs_listener(note)
    return lambda: sum(end - start for start, end in spans)


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
