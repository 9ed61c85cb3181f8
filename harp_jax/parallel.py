"""The one place that knows how a step runs on several devices: `jax.pmap` over one axis.

Every process holds a batch of shape `[local devices, per device, ...]` and a state that is the same
on all devices. Gradients and counts are reduced inside the mapped function, after differentiation:
`mean(grad(loss))` is right, `grad(mean(loss))` would not be.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.jax_utils
import jax
from jax import lax

from harp_jax.types import Device

AXIS = "device"

# Steps that may be under way at once. It is enough to hide the dispatch of the next ones. XLA:CPU
# takes up to 32 computations and then makes the threads wait that it needs to end them: with a step
# on several CPU devices, which wait for each other, all would wait for ever.
STEPS_IN_FLIGHT = 8

# CPU devices wait for each other where they reduce. XLA complains after 20 s and aborts the process
# after 40, but in a long attack on a busy machine one may well lag so far behind.
_PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    " --xla_cpu_collective_call_terminate_timeout_seconds=3600"
)


def local_devices(limit: int | None = None) -> list[Device]:
    """The devices of this process that take part: all, or the first `limit`.

    Raises:
        ValueError: if there are fewer than `limit`, or a limit is given to a run of many processes.
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
    """Number and kind of all devices that take part, e.g. '2 cpu devices'."""
    count = len(devices) * jax.process_count()
    return f"{count} {devices[0].device_kind} device{'s' if count > 1 else ''}"


def one_device_per_core(batch_sizes: Sequence[int], limit: int | None = None) -> None:
    """Makes a CPU run data-parallel: one XLA device for each core.

    XLA's CPU backend computes a convolution with few output channels on one thread, and passes
    from thread to thread between small operations; with a device for each core all are at work
    (`python -m benchmarks.train_step --devices 1` shows the difference). Has to be called before
    JAX is first used. Where somebody has set the number of CPU devices already, by XLA_FLAGS or
    JAX_NUM_CPU_DEVICES, it stays; accelerators are not concerned. XLA_FLAGS gets longer time limits
    for devices that wait for each other, in front of what it holds.

    Args:
        batch_sizes: Sizes that the number of devices has to divide.
        limit: Largest number of devices; the number of usable cores if None or larger.
    """
    config: Any = jax.config  # its fields are made at run time
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{_PATIENCE} {flags}".strip()  # of two values the last one holds
    if config.jax_num_cpu_devices >= 0 or "xla_force_host_platform_device_count" in flags:
        return
    cores = usable_cores()
    if limit is not None:
        cores = min(max(limit, 1), cores)
    config.update("jax_num_cpu_devices", largest_divisor(math.gcd(*batch_sizes), cores))


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def largest_divisor(number: int, limit: int) -> int:
    """Largest divisor of a number that is at most the limit, which is >= 1."""
    return max(part for part in range(1, limit + 1) if number % part == 0)


def parallel(
    function: Callable[..., Any],
    devices: Sequence[Device],
    donate_argnums: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Compiles a function to run on all devices, its arguments split on their first axis."""
    everywhere = len(devices) == jax.local_device_count()
    return jax.pmap(
        function,
        axis_name=AXIS,
        donate_argnums=donate_argnums,
        devices=None if everywhere else devices,
    )


def replicate(tree: Any, devices: Sequence[Device]) -> Any:
    """A copy of the tree on every device, stacked on a new first axis."""
    # The axis name is part of the sharding: under another one than the step returns, the step
    # would be compiled again for its own result.
    return flax.jax_utils.replicate(tree, devices, axis_name=AXIS)


def to_host(tree: Any) -> Any:
    """One copy of a replicated tree, as numpy arrays."""
    return jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data[0], tree))


def prefetch(batches: Iterable[Any], devices: Sequence[Device]) -> Iterator[Any]:
    """Batches on their devices, the next one already under way while one is in use."""
    return flax.jax_utils.prefetch_to_device(iter(batches), 2, devices)


def mean(tree: Any) -> Any:
    """Mean over all devices of all processes; inside a mapped function."""
    return lax.pmean(tree, AXIS)


def total(tree: Any) -> Any:
    """Sum over all devices of all processes; inside a mapped function."""
    return lax.psum(tree, AXIS)


def maximum(tree: Any) -> Any:
    """Maximum over all devices of all processes; inside a mapped function."""
    return lax.pmax(tree, AXIS)


def place() -> jax.Array:
    """This device's place among all of all processes, from 0; inside a mapped function.

    Devices are counted process by process, in the order in which they share a global batch
    (`data.train_batches`).
    """
    return lax.axis_index(AXIS)


def gather(tree: Any) -> Any:
    """The parts of all devices, stacked in the order of `place`; inside a mapped function."""
    return lax.all_gather(tree, AXIS)
