"""Running a function on several devices: the only module that uses `jax.pmap`, over one axis.

Each process passes a batch of shape `[local devices, per device, ...]` and a state that is equal on
all devices. Gradients and counts are reduced inside the mapped function, after differentiation:
`mean(grad(loss))` is correct, `grad(mean(loss))` is not.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.jax_utils
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from harp_jax.types import Device

AXIS = "device"

# JAX' names: the device's own (TF32 on GPUs that have it, bfloat16 on TPUs), more (three passes of
# bfloat16 on TPUs), and float32.
PRECISIONS = ("default", "high", "highest")

# Number of steps dispatched but not finished, enough to hide the cost of a dispatch. XLA:CPU queues
# up to 32 computations and then blocks the threads that it needs to finish them. A step on several
# CPU devices, which wait for each other, would then deadlock.
STEPS_IN_FLIGHT = 8

# CPU devices wait for each other in a reduction. XLA warns after 20 s and aborts the process after
# 40 s; in a long attack on a busy machine one device can lag that far behind.
_PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    " --xla_cpu_collective_call_terminate_timeout_seconds=3600"
)


def local_devices(limit: int | None = None) -> list[Device]:
    """Returns the local devices to use: all, or the first `limit`.

    Args:
        limit: Number of devices, >= 1; None means all.

    Returns:
        Devices of this process.

    Raises:
        ValueError: If there are fewer than `limit`, or if several processes run with a limit.
    """
    devices = jax.local_devices()
    if limit is None:
        return devices
    if jax.process_count() > 1:
        raise ValueError(f"devices={limit}: leave it unset when several processes run")
    if not 1 <= limit <= len(devices):
        raise ValueError(f"devices={limit}: this machine has {len(devices)}, allowed are 1 to that")
    return devices[:limit]


def names(devices: Sequence[Device]) -> str:
    """Returns number and kind of the devices of all processes, such as '2 cpu devices'."""
    count = len(devices) * jax.process_count()
    return f"{count} {devices[0].device_kind} device{'s' if count > 1 else ''}"


def one_device_per_core(batch_sizes: Sequence[int], limit: int | None = None) -> None:
    """Makes a CPU run data-parallel, with one XLA device per core.

    XLA's CPU backend computes a convolution with few output channels on one thread, and hands
    small operations from thread to thread. One device per core keeps all cores busy
    (`python -m benchmarks.train_step --devices 1` shows the difference). Call it before the first
    use of JAX. It keeps a number of CPU devices that is already set by XLA_FLAGS or
    JAX_NUM_CPU_DEVICES, and does not affect accelerators. It also puts longer time limits for
    devices that wait for each other in front of XLA_FLAGS.

    Args:
        batch_sizes: Batch sizes; all are multiples of the number of devices unless `limit` is set.
        limit: Number of devices, of as many as there are usable cores; None means the largest that
            fits the batch sizes.
    """
    config: Any = jax.config  # its fields are made at run time
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_PATIENCE} {flags}".strip()  # XLA takes the last of two values
    if config.jax_num_cpu_devices >= 0 or "xla_force_host_platform_device_count" in flags:
        return
    cores = usable_cores()
    if limit is None:
        count = largest_divisor(math.gcd(*batch_sizes), cores)
    else:
        count = min(max(limit, 1), cores)
    config.update("jax_num_cpu_devices", count)


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def largest_divisor(number: int, limit: int) -> int:
    """Returns the largest divisor of a number that is at most `limit`, with limit >= 1."""
    return max(part for part in range(1, limit + 1) if number % part == 0)


def parallel(
    function: Callable[..., Any],
    devices: Sequence[Device],
    donate_argnums: tuple[int, ...] = (),
    precision: str | None = None,
) -> Callable[..., Any]:
    """Maps a function over devices, along the first axis of its arguments.

    Args:
        function: Function of one device's arguments; may call `mean`, `total` and the others below.
        devices: Local devices.
        donate_argnums: Positions of the arguments whose memory the result may reuse.
        precision: Precision of float32 products, see `at_precision`; None leaves JAX' default.

    Returns:
        The compiled function of arguments with a first axis of length `len(devices)`.
    """
    if precision is not None:
        function = at_precision(function, precision)
    everywhere = len(devices) == jax.local_device_count()
    return jax.pmap(
        function,
        axis_name=AXIS,
        donate_argnums=donate_argnums,
        devices=None if everywhere else devices,
    )


def precision_on(devices: Sequence[Device], precision: str) -> str | None:
    """Returns the precision to ask for on devices: on CPUs none, which compute in float32 anyhow.

    There the highest would only switch off Winograd's form (see `ops`).

    Args:
        devices: Local devices.
        precision: One of `PRECISIONS`.

    Returns:
        The argument of `parallel`.

    Raises:
        ValueError: For another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"matmul_precision={precision!r}: allowed are {', '.join(PRECISIONS)}")
    return None if devices[0].platform == "cpu" else precision


def at_precision(function: Callable[..., Any], precision: str) -> Callable[..., Any]:
    """Fixes the precision of all float32 products and convolutions of a function.

    That counts for those of its gradients and loops too.

    Args:
        function: Function of arrays.
        precision: One of `PRECISIONS`.

    Returns:
        The function, to be compiled.
    """

    @functools.wraps(function)
    def precise(*arguments: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*arguments)

    return precise


def replicate(tree: Any, devices: Sequence[Device]) -> Any:
    """Copies a tree to every device, stacked on a new first axis."""
    # The axis name is part of the sharding. It must be that of the step's result: otherwise the
    # second call would compile the step again.
    return flax.jax_utils.replicate(tree, devices, axis_name=AXIS)


def to_host(tree: Any) -> Any:
    """Returns one copy of a replicated tree as NumPy arrays."""
    return jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree))


def prefetch(batches: Iterable[Any], devices: Sequence[Device]) -> Iterator[Any]:
    """Yields batches on their devices and copies the next one while one is in use."""
    return flax.jax_utils.prefetch_to_device(iter(batches), 2, devices)


def mean(tree: Any) -> Any:
    """Returns the mean over the devices of all processes; only inside a mapped function."""
    return lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
    """Returns the sum over the devices of all processes; only inside a mapped function."""
    return lax.psum(tree, AXIS)


def maximum(tree: Any) -> Any:
    """Returns the maximum over the devices of all processes; only inside a mapped function.

    It is nan if a value is: a reduction by XLA alone may drop NaN.
    """

    def largest(value: jax.Array) -> jax.Array:
        unknown = lax.psum(jnp.isnan(value).astype(jnp.int32), AXIS) > 0
        return jnp.where(unknown, jnp.nan, lax.pmax(value, AXIS))

    return jax.tree.map(largest, tree)


def place() -> jax.Array:
    """Returns this device's index among those of all processes; only inside a mapped function.

    Devices are counted from 0, process by process, in the order in which they share a global batch
    (see `data.train_batches`).
    """
    return lax.axis_index(AXIS)


def gather(tree: Any) -> Any:
    """Stacks the parts of all devices in the order of `place`; only inside a mapped function."""
    return lax.all_gather(tree, AXIS)


def anywhere(flag: bool) -> bool:
    """Returns whether a flag is set in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())
