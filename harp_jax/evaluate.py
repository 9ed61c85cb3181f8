"""Natural and robust accuracy of every stage's network on the test split -> results.json."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from harp_jax import checkpoint, models
from harp_jax.attacks import Attack
from harp_jax.config import Config, make_attack
from harp_jax.data import Dataset, to_unit
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.layers import bake
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.training import parallel
from harp_jax.training.accuracy import Accuracy, Measurement
from harp_jax.training.loop import InterruptedRunError
from harp_jax.training.stages import STAGES
from harp_jax.types import Device

_LOGGER = logging.getLogger(__name__)

EXAMPLES = 10  # images in the report's strip


def evaluate(
    config: Config,
    workdir: epath.Path,
    model: nn.Module,
    dataset: Dataset,
    devices: Sequence[Device],
    measurement: Measurement,
    architecture: Architecture,
    header: dict[str, Any],
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    """Measures the network of every complete stage; goes on where a stopped evaluation was.

    results.json is written after each stage's row, examples.npz (clean and adversarial images with
    predictions, under the last attack of the list) at the end.

    Args:
        config: The run's configuration.
        workdir: Where the stages are and the results go.
        model: The network.
        dataset: Its test split is used, every example of it.
        devices: Local devices.
        measurement: Measures the network.
        architecture: Its layers, for the count of FLOPs.
        header: What results.json holds beside the rows: config, seed, versions, devices.
        stop_requested: Asked between measurements.

    Returns:
        The content of results.json.

    Raises:
        CheckpointError: if no stage is complete.
        InterruptedRunError: if a stop was requested; finished rows are saved.
    """
    stages = [stage for stage in STAGES if checkpoint.is_complete(workdir / stage)]
    if not stages:
        raise checkpoint.CheckpointError(f"{workdir}: no complete stage to evaluate")
    settings = config.evaluate.attacks.to_dict()
    attacks = {name: make_attack(s, f"evaluate.attacks.{name}") for name, s in settings.items()}
    results = {
        **header,
        "complete": False,
        "dataset": {
            "name": dataset.name,
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
        },
        "attacks": settings,
        "notes": [],
        "rows": _rows_done(workdir / "results.json", settings, len(dataset.test), stages),
    }
    natural = measurement.under(None)
    robust = {name: measurement.under(attack) for name, attack in attacks.items()}
    for stage in stages:
        variables = checkpoint.load(workdir / stage)
        metadata = variables.pop("metadata")
        results["notes"] += metadata["notes"]
        if stage in [row["stage"] for row in results["rows"]]:
            continue
        plain = measurement.bake(parallel.replicate(variables, devices))
        measured = _measure(plain, natural, robust, dataset, stage, stop_requested)
        row = {"stage": stage, **_sizes(variables, architecture), **measured}
        row["checkpoint_epoch"] = metadata["epoch"]
        results["rows"].append(row)
        _LOGGER.info("%s", _sentence(row))
        _write(workdir / "results.json", results)
    if attacks:
        _write_examples(workdir, model, dataset, stages, *list(attacks.items())[-1], config.seed)
    results["complete"] = True
    _write(workdir / "results.json", results)
    return results


def _rows_done(
    path: epath.Path, settings: dict[str, Any], images: int, stages: list[str]
) -> list[dict[str, Any]]:
    """Rows of an earlier, stopped evaluation that are the ones wanted now."""
    if not path.exists():
        return []
    earlier = json.loads(path.read_text())
    if earlier["attacks"] != settings:
        return []
    return [row for row in earlier["rows"] if row["stage"] in stages and row["images"] == images]


def _measure(
    plain: Any,
    natural: Accuracy,
    robust: dict[str, Accuracy],
    dataset: Dataset,
    stage: str,
    stop_requested: Callable[[], bool],
) -> dict[str, Any]:
    started = time.monotonic()
    measured: dict[str, Any] = {
        "natural": natural(plain, dataset.test, "natural"),
        "robust": {},
    }
    for name, accuracy in robust.items():
        if stop_requested():
            raise InterruptedRunError(
                f"evaluate: stopped in stage {stage}; finished stages are saved, the same command"
                " goes on from here"
            )
        measured["robust"][name] = accuracy(plain, dataset.test, name)
    return {**measured, "images": len(dataset.test), "seconds": time.monotonic() - started}


def _sizes(variables: Any, architecture: Architecture) -> dict[str, Any]:
    layers = layer_sparsity(variables, architecture)
    fields = ("parameters", "kept", "flops", "kept_flops")
    total, kept, total_flops, flops = (sum(getattr(row, f) for row in layers) for f in fields)
    return {
        "sparsity": 1.0 - kept / total,
        "parameters": kept,
        "total": total,
        "flops": flops,
        "total_flops": total_flops,
        "layers": [row._asdict() for row in layers],
    }


def _sentence(row: dict[str, Any]) -> str:
    robust = "".join(f", {name} {accuracy:.2%}" for name, accuracy in row["robust"].items())
    share = row["flops"] / row["total_flops"]
    return (
        f"{row['stage']}: {row['parameters']} of {row['total']} weights (sparsity"
        f" {row['sparsity']:.2%}), {share:.2%} of the FLOPs, natural {row['natural']:.2%}{robust}"
        f" on {row['images']} images"
    )


def _write(path: epath.Path, results: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(results, indent=2) + "\n")
        unfinished.replace(path)


def _write_examples(
    workdir: epath.Path,
    model: nn.Module,
    dataset: Dataset,
    stages: list[str],
    name: str,
    attack: Attack,
    seed: int,
) -> None:
    """A few test images, evenly spread over the split, clean and attacked."""
    chosen = np.linspace(0, len(dataset.test) - 1, min(EXAMPLES, len(dataset.test))).astype(int)
    images = to_unit(jnp.asarray(dataset.test.images[chosen]))
    labels = jnp.asarray(dataset.test.labels[chosen])

    @jax.jit
    def attacked(variables: Any) -> dict[str, jax.Array]:
        logits_fn = models.logits_fn(model, variables)
        adversarial = attack(logits_fn, images, labels, jax.random.key(seed))
        return {
            "adversarial": adversarial,
            "natural_prediction": logits_fn(images).argmax(-1),
            "adversarial_prediction": logits_fn(adversarial).argmax(-1),
        }

    plain = jax.jit(bake)  # apart from the attack, which so compiles once for all stages
    arrays = {"images": images, "labels": labels, "attack": name, "epsilon": attack.epsilon}
    for stage in stages:
        variables = checkpoint.load(workdir / stage)
        del variables["metadata"]
        found = attacked(plain(variables))
        arrays |= {f"{stage}/{key}": value for key, value in found.items()}
    if jax.process_index() == 0:
        with (workdir / "examples.npz").open("wb") as file:
            np.savez(file, **arrays)
