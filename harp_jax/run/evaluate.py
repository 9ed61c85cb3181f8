"""Natural and robust accuracy of every stage's network on the test split -> results.json."""

import functools
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

from harp_jax import checkpoint, models, parallel
from harp_jax.attacks import APGD, Attack, AutoAttack
from harp_jax.config.sections import Config, attacks_to_run
from harp_jax.data import Dataset, to_unit
from harp_jax.evaluation import CURVE, ROBUST, Outcome, PackedAutoAttack, warnings
from harp_jax.evaluation.accuracy import Measurement, Score
from harp_jax.interrupt import InterruptedRunError
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.layers import bake
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.training.stages import STAGES
from harp_jax.types import Device
from harp_jax.workdir import records

_LOGGER = logging.getLogger(__name__)

EXAMPLES = 10  # images in the report's strip
CURVE_STEPS = 25  # of APGD, for each radius of the security curve


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
    """Measures the networks of complete stages; goes on where a stopped evaluation was.

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
        stop_requested: Asked between measurements, and between the batches of AutoAttack.

    Returns:
        The content of results.json.

    Raises:
        InterruptedRunError: if a stop was requested; finished rows are saved, and AutoAttack's
            progress after each batch.
    """
    complete = [stage for stage in STAGES if checkpoint.is_complete(workdir / stage)]
    stages = [stage for stage in complete if stage in config.evaluate.stages]
    attacks = attacks_to_run(config)
    settings = {name: config.evaluate.attacks[name].to_dict() for name in attacks}
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
        "rows": _rows_done(workdir / "results.json", config, settings, len(dataset.test), complete),
    }
    measurer = _Measurer(config, workdir, model, dataset, devices, measurement, stop_requested)
    for stage in complete:
        variables = checkpoint.load(workdir / stage)
        metadata = variables.pop("metadata")
        results["notes"] += metadata["notes"]
        if stage not in stages or stage in [row["stage"] for row in results["rows"]]:
            continue
        plain = measurement.bake(parallel.replicate(variables, devices))
        row = {
            "stage": stage,
            **_sizes(variables, architecture),
            **measurer.measure(plain, stage, attacks),
        }
        row["checkpoint_epoch"] = metadata["epoch"]
        row["warnings"] = warnings(row, settings)
        results["rows"].append(row)
        results["rows"].sort(key=lambda row: STAGES.index(row["stage"]))
        _LOGGER.info("%s", _sentence(row))
        for warning in row["warnings"]:
            _LOGGER.warning("%s: %s", stage, warning)
        _write(workdir / "results.json", results)
    if attacks:
        measured = [row["stage"] for row in results["rows"]]
        _write_examples(workdir, model, dataset, measured, *list(attacks.items())[-1], config.seed)
    results["complete"] = True
    _write(workdir / "results.json", results)
    return results


def _rows_done(
    path: epath.Path, config: Config, settings: dict[str, Any], images: int, stages: list[str]
) -> list[dict[str, Any]]:
    """Rows of an earlier, stopped evaluation that are the ones wanted now."""
    if not path.exists():
        return []
    earlier = records.read_json(path)
    kept = [
        row
        for row in earlier["rows"]
        if earlier["attacks"] == settings
        and row["stage"] in stages
        and row["images"] == images
        and "checks" in row  # of a version that made them
        and ("curve" in row) == config.evaluate.curve
    ]
    if len(kept) < len(earlier["rows"]) and jax.process_index() == 0:
        beside = path.with_name("results.previous.json")
        path.copy(beside, overwrite=True)
        _LOGGER.warning("evaluate: other attacks or images than before; %s has those", beside)
    return kept


class _Measurer:
    """Measures the networks of all stages with the same compiled programs."""

    def __init__(
        self,
        config: Config,
        workdir: epath.Path,
        model: nn.Module,
        dataset: Dataset,
        devices: Sequence[Device],
        measurement: Measurement,
        stop_requested: Callable[[], bool],
    ):
        self.config, self.workdir, self.split = config, workdir, dataset.test
        self.measurement, self.stop_requested = measurement, stop_requested
        self.packed = functools.cache(
            functools.partial(
                PackedAutoAttack,
                model,
                seed=config.seed,
                batch_size=config.evaluate.batch_size,
                devices=devices,
            )
        )

    def measure(self, plain: Any, stage: str, attacks: dict[str, Attack]) -> dict[str, Any]:
        """What a row says of a network apart from its size."""
        started = time.monotonic()
        natural = self._score(plain, stage, "natural", None)
        row: dict[str, Any] = {"natural": natural.accuracy, "robust": {}}
        row["balanced"] = {"natural": natural.balanced}
        excesses = [natural.excess]
        for name, attack in attacks.items():
            if isinstance(attack, AutoAttack):
                outcome = self._autoattack(plain, stage, name, attack)
                score = Score.of(*self._by_class(outcome.broken_by == ROBUST), outcome.excess)
                row.setdefault("autoattack", {})[name] = self._of_outcome(outcome)
            else:
                score = self._score(plain, stage, name, attack)
            row["robust"][name], row["balanced"][name] = score.accuracy, score.balanced
            excesses.append(score.excess)
        if self.config.evaluate.curve:
            row["curve"] = self._curve(plain, stage, natural.accuracy)
        largest = float(np.max(excesses))
        row["checks"] = {"largest_excess": largest if np.isfinite(largest) else None}
        seconds = time.monotonic() - started
        return {**row, "images": len(self.split), "seed": self.config.seed, "seconds": seconds}

    def _score(self, plain: Any, stage: str, name: str, attack: Attack | None) -> Score:
        if self.stop_requested():
            raise InterruptedRunError(
                f"evaluate: stopped in stage {stage}; finished stages are saved, the same command"
                " goes on from here"
            )
        return self.measurement.under(attack)(plain, self.split, name)

    def _autoattack(self, plain: Any, stage: str, name: str, attack: AutoAttack) -> Outcome:
        path = self.workdir / "robustness" / f"{stage}-{name}.npz"
        label = f"{stage} {name}"
        return self.packed(attack)(plain, self.split, label, path, self.stop_requested)

    def _of_outcome(self, outcome: Outcome) -> dict[str, Any]:
        after = {name: outcome.robust(name) for name in outcome.names}
        balanced = {name: Score.of(*self._by_class(robust)) for name, robust in after.items()}
        return {
            "after": {name: score.accuracy for name, score in balanced.items()},
            "balanced": {name: score.balanced for name, score in balanced.items()},
            "seconds": outcome.seconds,
            "images": len(self.split),
            "seed": self.config.seed,
            "zero_gradients": outcome.zero_gradients,
            "deterministic": outcome.deterministic,
        }

    def _by_class(self, robust: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of robust and of all examples of each class."""
        classes = int(self.split.labels.max()) + 1
        return (
            np.bincount(self.split.labels[robust], minlength=classes),
            np.bincount(self.split.labels, minlength=classes),
        )

    def _curve(self, plain: Any, stage: str, natural: float) -> list[dict[str, float]]:
        """Accuracy by radius; an example may break at a radius and not at a larger one."""
        curve = [{"epsilon": 0.0, "robust": natural}]
        for multiple in CURVE[1:]:
            attack = APGD(multiple * self.config.attack.epsilon, steps=CURVE_STEPS)
            score = self._score(plain, stage, f"{multiple:g} epsilon", attack)
            curve.append({"epsilon": attack.epsilon, "robust": score.accuracy})
        return curve


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
