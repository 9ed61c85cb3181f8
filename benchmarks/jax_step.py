"""The training step of harp_jax, and the layers and arrays of its networks."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workload
from harp_jax import models, parallel
from harp_jax.attacks import PGD
from harp_jax.attacks.groups import pays_in_groups
from harp_jax.data import to_unit
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.losses import PgdTraining
from harp_jax.methods import METHODS
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import (
    Path,
    bake,
    kernel_paths,
    leaves_by_path,
    make_prunable,
    tree_of_leaves,
)
from harp_jax.run import recipe
from harp_jax.run.networks import Networks
from harp_jax.training import optim
from harp_jax.training import state as train_state
from harp_jax.training.stages import STREAMS, WEIGHTS, Stage
from harp_jax.types import Variables

BATCHES_PER_EPOCH = 390
SMALL, LEAST = 1000, 0.2  # layers with fewer weights keep at least this share


class Layer(NamedTuple):
    """A convolution or dense layer with the BatchNorm that follows it.

    Attributes:
        path: Path of the layer in `params`.
        norm: Path of its BatchNorm; None if it has none.
        multiply_adds: Multiply-adds for one image, including taps on the padding.
    """

    path: Path
    norm: Path | None
    multiply_adds: int


def image_like(network: str) -> jax.Array:
    """Returns a batch with one image of zeros."""
    return jnp.zeros((1, *workload.IMAGE_SHAPES[network]))


def create(network: str, dtype: str = "float32") -> tuple[nn.Module, Variables]:
    """Creates a network, with features of a type, and its initial variables, always the same."""
    model = models.create(network, workload.CLASSES, axis_name=parallel.AXIS, dtype=dtype)
    return model, jax.tree.map(jnp.asarray, _initial(network))


@functools.cache
def _initial(network: str) -> Variables:
    model = models.create(network, workload.CLASSES, axis_name=parallel.AXIS)
    return jax.device_get(jax.jit(model.init)(jax.random.key(0), image_like(network)))


def pruned(variables: Variables) -> dict[str, Any]:
    """Adds the initial scores and rates of pruning to the variables."""
    rates = dict.fromkeys(parameter_costs(variables["params"]), workload.START_RATE)
    return make_prunable(variables, rates, workload.MINIMUM, "weight")


def masked(variables: Variables, rate: float) -> dict[str, Any]:
    """Returns a network's variables with random masks."""
    leaves, generator = leaves_by_path(variables["params"]), np.random.default_rng(0)
    for path in kernel_paths(variables["params"]):
        shape = leaves[path].shape
        share = max(rate, LEAST) if leaves[path].size < SMALL else rate
        mask = generator.random(shape) < share
        # In NumPy: JAX would compile for every shape. The factor keeps the activations' size.
        leaves[path] = np.asarray(leaves[path]) * mask / np.float32(share**0.5)
    return {**variables, "params": tree_of_leaves(leaves)}


def layers(network: str) -> list[Layer]:
    """Returns the network's layers in call order, found by an abstract forward pass."""
    calls: list[tuple[Path, Any]] = []

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            calls.append((context.module.path, output))
        return output

    model = models.create(network, workload.CLASSES)
    with nn.intercept_methods(note):
        variables = jax.eval_shape(model.init, jax.random.key(0), image_like(network))
    params = leaves_by_path(variables["params"])
    found: list[Layer] = []
    for path, output in calls:
        if (*path, "kernel") in params:
            *taps, _ = params[*path, "kernel"].shape
            found.append(Layer(path, None, output.size * math.prod(taps)))
        elif (*path, "scale") in params:
            found[-1] = found[-1]._replace(norm=path)
    return found


def step_operations(network: str, batch: int, attack_steps: int) -> int:
    """Counts the floating-point operations of a training step in convolutions and dense layers.

    Each step of the attack computes a forward pass and the gradients of all layers' inputs. The
    training pass also computes the gradients of the kernels, but not that of the images.
    """
    counts = [layer.multiply_adds for layer in layers(network)]
    passes = (2 * attack_steps + 3) * sum(counts) - counts[0]
    return 2 * batch * passes


def layer_arrays(network: str, variables: Variables) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of every layer, in call order.

    Args:
        network: Name of the network.
        variables: Variables with 'params' and 'batch_stats'.

    Returns:
        Per layer: 'kernel' (HWIO or `[in, out]`), 'bias' if it has one, and with a BatchNorm
        'norm_scale', 'norm_bias', 'norm_mean', 'norm_var'.
    """
    params, stats = (leaves_by_path(variables[name]) for name in ("params", "batch_stats"))
    found = []
    for path, norm, _ in layers(network):
        leaves = {name: params.get((*path, name)) for name in ("kernel", "bias")}
        if norm is not None:
            leaves |= {f"norm_{name}": params[*norm, name] for name in ("scale", "bias")}
            leaves |= {f"norm_{name}": stats[*norm, name] for name in ("mean", "var")}
        found.append({name: np.asarray(leaf) for name, leaf in leaves.items() if leaf is not None})
    return found


def logits(network: str, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Computes logits of uint8 images in inference mode, masked if the variables have masks."""
    model = models.create(network, workload.CLASSES)
    forward = jax.jit(lambda variables, x: model.apply(bake(variables), x, train=False))
    return np.asarray(forward(variables, to_unit(jnp.asarray(images))))


class JaxStep:
    """The compiled training step of one mode, with its state.

    Args:
        network: Name of the network.
        batch: A batch of `workload.random_batch`.
        attack_steps: Number of PGD steps.
        prune: Whether to train scores and rates instead of weights.
        rate: Share of the weights that random masks keep, to compute with these alone; None keeps
            all.
        precision: Of float32 products on accelerators, one of `parallel.PRECISIONS`.
        dtype: Type of the features, 'float32' or 'bfloat16'.
        learning_rate: The same in every step.
    """

    def __init__(
        self,
        network: str,
        batch: dict[str, np.ndarray],
        attack_steps: int,
        *,
        prune: bool,
        rate: float | None = None,
        precision: str | None = None,
        dtype: str = "float32",
        learning_rate: float = workload.LEARNING_RATE,
    ):
        model, variables = create(network, dtype)
        if rate is not None:
            variables = masked(variables, rate)
        gradient = None
        if prune:
            variables = pruned(variables)
            sizes = tree_of_leaves(parameter_costs(variables["params"]))
            gradient = add_compression_gradient(
                sizes, workload.TARGET, workload.MINIMUM, workload.GAMMA, BATCHES_PER_EPOCH
            )
        optimizer = optim.optimizer(
            lambda _: learning_rate,
            workload.MOMENTUM,
            workload.WEIGHT_DECAY,
            gradient,
            clip_norm=workload.PRUNE_CLIP_NORM if prune else None,
        )
        method = METHODS["harp"]
        stage = Stage(
            name="prune" if prune else "pretrain",
            stream=method.stream if prune else STREAMS["pretrain"],
            trains=method.trains if prune else WEIGHTS,
            loss=PgdTraining(),
            attack=PGD(workload.EPSILON, workload.STEP_SIZE, attack_steps),
            optimizer=optimizer,
            learning_rate=lambda _: learning_rate,
            batches_per_epoch=BATCHES_PER_EPOCH,
            augment=lambda images, keys: to_unit(images),
        )
        on_cpus, small = jax.default_backend() == "cpu", pays_in_groups(variables["params"])
        forms = Networks(
            model,
            sparse=rate is not None and on_cpus,
            grouped=on_cpus and small,
            measure=make_measurement,
        )
        form = forms.of(stage.name, variables)
        step = recipe.make_step(stage, form, forms.group(form))
        devices = parallel.local_devices()
        self.state = parallel.replicate(train_state.create(stage, variables), devices)
        self.batch = {
            name: array.reshape(len(devices), -1, *array.shape[1:]) for name, array in batch.items()
        }
        chosen = precision and parallel.precision_on(devices, precision)
        self.step: Any = parallel.parallel(step, devices, (0,), chosen)

        self.costs: dict[str, float] = {}

    def compile(self) -> None:
        """Compiles the step before its first call; notes seconds and the device's memory, MiB."""
        lowered = self.step.lower(self.state, self.batch)
        started = time.perf_counter()
        self.step = lowered.compile()
        seconds, memory = time.perf_counter() - started, self.step.memory_analysis()
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        used += memory.output_size_in_bytes - memory.alias_size_in_bytes
        self.costs = {"compile_seconds": seconds, "memory_mib": used / 2**20}

    def run(self, steps: int) -> float:
        """Runs steps one after the other without waiting in between; returns seconds a step."""
        started = time.perf_counter()
        for _ in range(steps):
            self.state = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - started) / steps

    def seconds(self) -> float:
        """Runs one step and returns its wall time, in seconds."""
        started = time.perf_counter()
        self.state = jax.block_until_ready(self.step(self.state, self.batch))
        return time.perf_counter() - started
