"""Measures how well BatchNorm's fast variance, E[x^2] - E[x]^2, is computed in trained networks.

    python -m benchmarks.variance --workdir runs/mnist

Flax computes the variance of a batch so, in float32, which loses digits where a filter's mean is
many times its deviation. The inputs of every BatchNorm, over a batch of training images in training
mode, are compared with the variance in float64. The error of a filter is that of variance + epsilon
(1e-5), by which BatchNorm divides: |fast - exact| / (exact + epsilon). 'ratio' is the largest
mean^2 / (variance + epsilon), about how many times float32's rounding, 6e-8, is amplified.
'bfloat16' rounds the features, as `compute_dtype=bfloat16` does, and then computes the variance in
float32. Filters of constant value
(variance below 1e-12) are counted. Prints a line for each stage and type.
"""

import argparse
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from harp_jax import checkpoint, models
from harp_jax.config.of_workdir import get_config
from harp_jax.config.sections import load_data
from harp_jax.data import to_unit
from harp_jax.pruning.layers import bake

EPSILON, CONSTANT = 1e-5, 1e-12
TYPES = ("float32", "bfloat16")


def inputs_of_norms(model: nn.Module, variables: Any, images: jax.Array) -> list[np.ndarray]:
    """Returns what every BatchNorm reads in training mode, [values, filters]."""
    found: list[np.ndarray] = []

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            features = np.asarray(args[0].astype(jnp.float32))
            found.append(features.reshape(-1, features.shape[-1]))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        model.apply(variables, images, train=True, mutable=["batch_stats"])
    return found


def errors(features: np.ndarray) -> dict[str, np.ndarray]:
    """Compares the fast variance of filters with the exact one.

    Args:
        features: What a BatchNorm reads, [values, filters].

    Returns:
        For each filter 'error', 'ratio' and 'constant', see the head of this file.
    """
    x, exact = jnp.asarray(features), features.astype(np.float64)
    fast = jnp.maximum(0.0, (x * x).mean(0) - x.mean(0) ** 2)
    variance = exact.var(0)
    return {
        "error": np.abs(np.asarray(fast, np.float64) - variance) / (variance + EPSILON),
        "ratio": exact.mean(0) ** 2 / (variance + EPSILON),
        "constant": variance < CONSTANT,
    }


def measure(workdir: epath.Path, stage: str, dtype: str, batch: int) -> dict[str, Any]:
    """Measures the network of a stage; returns the line to print."""
    config = get_config(str(workdir))
    dataset = load_data(config)
    variables = checkpoint.load(workdir / stage)
    metadata = variables.pop("metadata")
    model = models.create(metadata["model"], metadata["num_classes"], dtype=dtype)
    images = to_unit(jnp.asarray(dataset.train.images[:batch]))
    found = [errors(each) for each in inputs_of_norms(model, bake(variables), images)]
    values = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    return {
        "stage": stage,
        "type": dtype,
        "filters": len(values["error"]),
        "constant": int(values["constant"].sum()),
        "largest_error": float(f"{values['error'].max():.2e}"),
        "largest_ratio": float(f"{values['ratio'].max():.3g}"),
    }


def main() -> None:
    """Prints a line for each stage and type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="folder of a run")
    parser.add_argument("--batch", type=int, default=128, help="training images (%(default)s)")
    options = parser.parse_args()
    workdir = checkpoint.absolute(options.workdir)
    for stage in ("pretrain", "prune", "finetune"):
        if checkpoint.is_complete(workdir / stage):
            for dtype in TYPES:
                print(json.dumps(measure(workdir, stage, dtype, options.batch)), flush=True)


if __name__ == "__main__":
    main()
