"""PyTorch's parts of `benchmarks.accelerator`, each run in a process of its own.

    python -m benchmarks.accelerator_torch torch_steps

Steps run in the format channels_last, with TF32 or without, or under autocast to bfloat16. JAX is
kept on the CPU here; it only makes the arrays that both sides share.
"""

import argparse
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import torch  # pyright: ignore[reportMissingImports]

from benchmarks import workload
from benchmarks.accelerator_parts import Result, run, speed
from benchmarks.modes import MODES, Sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def torch_steps(sizes: Sizes, _: argparse.Namespace) -> Iterator[Result]:
    """Measures the plain steps of all networks, those that `torch.compile` compiles before others.

    The larger batches come last.
    """
    small, *larger = sizes.batches
    eager = [
        [(network, batch, mode, False) for network in sizes.networks for mode in MODES]
        for batch in (small, *larger)
    ]
    compiled = [
        (network, small, mode, True) for network in sizes.compiled for mode in ("tf32", "bfloat16")
    ]
    cases = [*eager[0], *compiled, *itertools.chain(*eager[1:])]
    for network, batch, mode, compiled in cases:
        yield _step(network, batch, mode, compiled, sizes.attack_steps)


def _step(network: str, batch: int, mode: str, compiled: bool, attack_steps: int) -> Result:
    from benchmarks.jax_step import step_operations
    from benchmarks.torch_step import TorchStep

    result: Result = {
        "name": f"{network} {mode} {batch}" + " compiled" * compiled,
        "network": network,
        "batch": batch,
        "mode": mode,
        "compiled": compiled,
    }
    _allow_tf32(mode != "float32")
    try:
        step = TorchStep(
            network,
            workload.random_batch(network, batch),
            attack_steps,
            prune=False,
            memory_format="channels_last",
            compiled=compiled,
            device=DEVICE,
            dtype=MODES[mode][0],
        )
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        operations = step_operations(network, batch, attack_steps)
        result |= {"compile_seconds": step.run(1), **speed(step.run, operations, batch)}
    except Exception as error:  # another network may still run
        return {**result, "failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    if DEVICE == "cuda":
        result["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return result


def torch_autoattack(sizes: Sizes, options: argparse.Namespace) -> Iterator[Result]:
    """Measures torchattacks' AutoAttack on the network that harp_jax' part trained."""
    from benchmarks import autoattack, autoattack_task

    task = autoattack_task.load(sizes, options.work)
    yield from autoattack_task.planned(sizes)
    for each in autoattack_task.planned(sizes):
        _allow_tf32(each["mode"] == "tf32")
        part = task._replace(split=task.split.take(slice(each["images"])))
        for found in autoattack.torch_attacks(part, autoattack_task.settings(sizes), DEVICE):
            yield {**each, **found}


def _allow_tf32(allowed: bool) -> None:
    backends: Any = torch.backends
    backends.cuda.matmul.allow_tf32 = allowed
    backends.cudnn.allow_tf32 = allowed
    backends.cudnn.benchmark = True


PARTS = {part.__name__: part for part in (torch_steps, torch_autoattack)}


if __name__ == "__main__":
    with contextlib.suppress(RuntimeError):  # JAX has begun already
        jax.config.update("jax_platforms", "cpu")
    run(PARTS)
