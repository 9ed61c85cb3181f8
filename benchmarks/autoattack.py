"""Compares harp_jax's AutoAttack with torchattacks' on the same trained network and images.

    python -m benchmarks.autoattack --workdir runs/fashion --images 1000

Copies a stage's network of a finished workdir to PyTorch and checks that both give the same logits.
Each side then runs AutoAttack with the published settings on the first test images; each of the
four attacks runs on the images that are still classified correctly. (torchattacks' defaults differ
from the published settings: its APGD and FAB take 10 steps.) harp_jax runs twice, to measure the
time without compilation too. Foolbox attacks harp_jax's logits function with PGD, next to our PGD
with the same steps. Results are written after each side. Needs `pip install -e '.[benchmarks]'`.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from benchmarks import jax_step, workload
from harp_jax import checkpoint, models, parallel
from harp_jax.attacks import PGD, AutoAttack
from harp_jax.data import Split, load, to_unit
from harp_jax.evaluation import Outcome, PackedAttack
from harp_jax.pruning.layers import bake
from harp_jax.workdir.files import CONFIG

RESULTS = pathlib.Path(__file__).parent / "results" / "autoattack.json"
SIDES = ("harp_jax", "torchattacks", "foolbox")
PACKAGES = ("harp_jax", "jax", "jaxlib", "numpy", "torch", "torchattacks", "foolbox")
NAMES = ("apgd-ce", "apgd-t", "fab-t", "square")
PGD_STEPS = 20
LOGITS_TOLERANCE = 1e-4  # relative to the largest logit


class Task(NamedTuple):
    """Task of all sides.

    Attributes:
        name: Name of the network.
        variables: Variables with masks applied.
        split: Test images and labels.
        epsilon: Radius of the L_inf ball, on the [0, 1] scale.
        seed: Seed of the attacks.
        batch_size: Batch size of all sides.
    """

    name: str
    variables: Any
    split: Split
    epsilon: float
    seed: int
    batch_size: int


def load_task(workdir: epath.Path, stage: str | None, images: int, batch_size: int) -> Task:
    """Loads the network and the test images of a workdir.

    Args:
        workdir: Workdir of a run with the `cnn`, or another network of `torch_networks`.
        stage: Name of a complete stage; None means the last one.
        images: Number of test images, taken from the start of the split.
        batch_size: Batch size of all sides.

    Returns:
        The task.
    """
    config = json.loads((workdir / CONFIG).read_text())["config"]
    variables = checkpoint.load(workdir / stage if stage else workdir)
    found = variables.pop("metadata")
    data = config["data"]
    dataset = load(
        data["name"],
        data_dir=data["directory"],
        seed=config["seed"],
        validation_examples=data["validation_examples"],
        test_examples=images,
    )
    epsilon, plain = config["attack"]["epsilon"], jax.jit(bake)(variables)
    return Task(found["model"], plain, dataset.test, epsilon, config["seed"], batch_size)


def packed_attack(
    task: Task, settings: AutoAttack | None = None, precision: str | None = None
) -> PackedAttack:
    """Builds harp_jax's AutoAttack on networks like the task's.

    Args:
        task: The task; its name, seed, radius and batch size count.
        settings: The attack; None means the published settings.
        precision: Of float32 products on accelerators, one of `parallel.PRECISIONS`.
    """
    devices = parallel.local_devices()
    model = models.create(task.name, workload.CLASSES)
    settings = settings or AutoAttack(task.epsilon)
    return PackedAttack(
        lambda variables, images: models.logits_fn(model, variables)(images),
        settings.parts(),
        identity=repr(settings),
        seed=task.seed,
        batch_size=task.batch_size,
        devices=devices,
        precision=precision and parallel.precision_on(devices, precision),
    )


def ours(
    task: Task, settings: AutoAttack | None = None, precision: str | None = None
) -> dict[str, Any]:
    """Measures harp_jax: accuracy after each attack, time with and without compilation.

    Args:
        task: The task.
        settings: The attack; None means the published settings.
        precision: Of float32 products on accelerators, one of `parallel.PRECISIONS`.

    Returns:
        What the head of this file says, by name.
    """
    packed = packed_attack(task, settings, precision)
    devices = parallel.local_devices()
    plain = parallel.replicate(task.variables, devices)

    def attack() -> tuple[Outcome, float]:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            path = epath.Path(folder) / "progress.npz"
            outcome = packed(plain, task.split, "harp_jax", path, lambda: False)
            return outcome, time.perf_counter() - started

    first, whole = attack()
    again, compiled = attack()
    if not np.array_equal(first.broken_by, again.broken_by):
        raise RuntimeError("AutoAttack did not repeat what it found")
    return {
        "after": {name: float(first.robust(name).mean()) for name in first.names},
        "seconds": whole,
        "seconds_compiled": compiled,
        "seconds_compiled_each": again.seconds,
        "devices": parallel.names(devices),
        "largest_excess": first.excess,
    }


def torch_side(task: Task) -> Any:
    """Measures torchattacks on the CPU; returns what `torch_attacks` yields last."""
    *_, found = torch_attacks(task)
    return {name: value for name, value in found.items() if name != "left"}


def torch_attacks(
    task: Task, settings: AutoAttack | None = None, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Measures torchattacks: accuracy after each attack and time.

    Args:
        task: The task.
        settings: Steps and queries; None means the published settings.
        device: Device of PyTorch, 'cpu' or 'cuda'.

    Yields:
        What is there after each attack: accuracies 'after' it and those before, 'seconds_each',
        their sum 'seconds', and names of the attacks that are 'left'.
    """
    torch: Any = importlib.import_module("torch")
    network = torch_network(task).to(device)
    attacks = _torchattacks(network, task, settings or AutoAttack(task.epsilon))
    images = torch.tensor(_channels_first(task.split.images)).to(device)
    labels = torch.tensor(task.split.labels).long().to(device)

    def right(images: Any, labels: Any) -> Any:
        with torch.no_grad():
            return network(images).argmax(1) == labels

    alive = np.flatnonzero(right(images, labels).cpu().numpy())
    after, seconds = {"natural": len(alive) / len(labels)}, {}
    for place, (name, attack) in enumerate(attacks.items(), start=1):
        started, left = time.perf_counter(), []
        for batch in _batches(alive, task.batch_size):
            with contextlib.redirect_stdout(io.StringIO()):
                adversarial = attack(images[batch], labels[batch])
            left.append(batch[right(adversarial, labels[batch]).cpu().numpy()])
        alive = np.concatenate([*left, np.zeros(0, np.int64)])
        seconds[name] = time.perf_counter() - started
        after[name] = len(alive) / len(labels)
        yield {
            "after": dict(after),
            "seconds_each": dict(seconds),
            "seconds": sum(seconds.values()),
            "left": list(NAMES[place:]),
        }


def _torchattacks(network: Any, task: Task, of: AutoAttack) -> dict[str, Any]:
    torchattacks: Any = importlib.import_module("torchattacks")
    common = {"norm": "Linf", "eps": task.epsilon, "seed": task.seed}
    classes = {"n_classes": workload.CLASSES}
    return dict(
        zip(
            NAMES,
            (
                torchattacks.APGD(network, steps=of.steps, loss="ce", **common),
                torchattacks.APGDT(network, steps=of.steps, **classes, **common),
                torchattacks.FAB(network, steps=of.steps, multi_targeted=True, **classes, **common),
                torchattacks.Square(network, n_queries=of.queries, **common),
            ),
            strict=True,
        )
    )


def torch_network(task: Task) -> Any:
    """Copies the network to PyTorch.

    Raises:
        RuntimeError: If the logits of the copy differ.
    """
    torch: Any = importlib.import_module("torch")
    torch_networks: Any = importlib.import_module("benchmarks.torch_networks")
    network = torch_networks.NETWORKS[task.name]()
    torch_networks.load(network, jax_step.layer_arrays(task.name, task.variables))
    network.eval()
    images = task.split.images[:64]
    expected = jax_step.logits(task.name, task.variables, images)
    with torch.no_grad():
        logits = network(torch.tensor(_channels_first(images))).numpy()
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    if difference > LOGITS_TOLERANCE:
        raise RuntimeError(f"logits of the two networks differ by {difference:.1e}")
    return network


def foolbox_side(task: Task) -> dict[str, Any]:
    """Measures accuracy under Foolbox' PGD and under ours, with the same steps."""
    foolbox: Any = importlib.import_module("foolbox")
    model = models.create(task.name, workload.CLASSES)
    logits_fn = jax.jit(models.logits_fn(model, task.variables))
    step = task.epsilon / 4
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=PGD_STEPS)
    wrapped = foolbox.JAXModel(logits_fn, bounds=(0, 1))
    pgd = jax.jit(
        lambda images, labels, key: PGD(task.epsilon, step, PGD_STEPS)(
            logits_fn, images, labels, key
        )
    )

    def foolbox_pgd(images: jax.Array, labels: jax.Array) -> jax.Array:
        return theirs(wrapped, images, labels, epsilons=task.epsilon)[1]

    def our_pgd(images: jax.Array, labels: jax.Array) -> jax.Array:
        return pgd(images, labels, jax.random.key(task.seed))

    def accuracy(attack: Callable[[jax.Array, jax.Array], jax.Array]) -> float:
        correct = 0
        for batch in _batches(np.arange(len(task.split)), task.batch_size):
            images = to_unit(jnp.asarray(task.split.images[batch]))
            labels = jnp.asarray(task.split.labels[batch])
            correct += int((logits_fn(attack(images, labels)).argmax(-1) == labels).sum())
        return correct / len(task.split)

    settings = {"steps": PGD_STEPS, "step_size": step}
    return {**settings, "foolbox": accuracy(foolbox_pgd), "harp_jax": accuracy(our_pgd)}


def _batches(places: np.ndarray, size: int) -> Sequence[np.ndarray]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _channels_first(images: np.ndarray) -> np.ndarray:
    """Converts uint8 NHWC to float32 NCHW in [0, 1]."""
    return np.ascontiguousarray(np.moveaxis(images, -1, 1).astype(np.float32) / 255)


def main() -> None:
    """Measures the chosen sides; keeps results of other sides for the same task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=epath.Path, help="folder of a run")
    parser.add_argument(
        "--stage",
        choices=("pretrain", "prune", "finetune"),
        help="stage of the run, its last by default",
    )
    parser.add_argument("--images", type=int, default=1000, help="test images (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=500, help="images at once (%(default)s)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="what to compare")
    parser.add_argument(
        "--output", type=pathlib.Path, default=RESULTS, help="file of results, JSON"
    )
    arguments = parser.parse_args()
    parallel.one_device_per_core([arguments.batch_size])
    workdir = checkpoint.absolute(arguments.workdir)
    task = load_task(workdir, arguments.stage, arguments.images, arguments.batch_size)
    results: dict[str, Any] = {
        "network": task.name,
        "stage": arguments.stage or "last",
        "images": len(task.split),
        "epsilon": task.epsilon,
        "seed": task.seed,
        "batch_size": task.batch_size,
        "cores": workload.cores(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    if arguments.output.exists():
        earlier = json.loads(arguments.output.read_text())
        if all(earlier.get(name) == value for name, value in results.items()):
            results = earlier
    for side in arguments.sides:
        measure = {"harp_jax": ours, "torchattacks": torch_side, "foolbox": foolbox_side}[side]
        results[side] = measure(task)
        print(side, json.dumps(results[side]), flush=True)
        if "harp_jax" in results and "torchattacks" in results:
            seconds = results["torchattacks"]["seconds"]
            results["ratio"] = seconds / results["harp_jax"]["seconds"]
            results["ratio_compiled"] = seconds / results["harp_jax"]["seconds_compiled"]
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
