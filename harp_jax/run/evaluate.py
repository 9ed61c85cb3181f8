"""Measures every stage's network on the test split and writes results.json."""

import logging
from collections.abc import Callable
from typing import Any

from etils import epath

from harp_jax import checkpoint, parallel
from harp_jax.config.sections import Config, attacks_to_run
from harp_jax.evaluation import warnings
from harp_jax.run.examples import write_examples
from harp_jax.run.rows import Measurer, Subject
from harp_jax.training.stages import STAGES
from harp_jax.workdir import files, is_first_process, records, write_json

_LOGGER = logging.getLogger(__name__)


def evaluate(
    subject: Subject, header: dict[str, Any], stop_requested: Callable[[], bool]
) -> dict[str, Any]:
    """Measures the networks of complete stages; continues a stopped evaluation.

    results.json is written after each stage's row, examples.npz (clean and adversarial images with
    predictions, under the last attack of the list) at the end.

    Args:
        subject: The run and the functions that measure it.
        header: Entries of results.json beside the rows: config, seed, versions, devices.
        stop_requested: Called between measurements, and between the batches of AutoAttack; True
            stops the evaluation.

    Returns:
        The content of results.json.

    Raises:
        InterruptedRunError: If a stop was requested; finished rows are saved, and AutoAttack's
            progress after each batch.
    """
    config, workdir, dataset = subject.config, subject.workdir, subject.dataset
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
        "rows": _rows_done(workdir / files.RESULTS, config, settings, len(dataset.test), complete),
    }
    measurer = Measurer(subject, attacks, stop_requested)
    for stage in complete:
        variables = checkpoint.load(workdir / stage)
        metadata = variables.pop("metadata")
        results["notes"] += metadata["notes"]
        if stage not in stages or stage in [row["stage"] for row in results["rows"]]:
            continue
        plain = subject.measurement.bake(parallel.replicate(variables, subject.devices))
        row = measurer.row(variables, plain, stage)
        row["checkpoint_epoch"] = metadata["epoch"]
        row["warnings"] = warnings(row, attacks, dataset.num_classes)
        results["rows"].append(row)
        results["rows"].sort(key=lambda row: STAGES.index(row["stage"]))
        _LOGGER.info("%s", _sentence(row))
        for warning in row["warnings"]:
            _LOGGER.warning("%s: %s", stage, warning)
        write_json(workdir / files.RESULTS, results)
    if attacks:
        measured = [row["stage"] for row in results["rows"]]
        write_examples(subject, measured, *list(attacks.items())[-1])
    results["complete"] = True
    write_json(workdir / files.RESULTS, results)
    return results


def _rows_done(
    path: epath.Path, config: Config, settings: dict[str, Any], images: int, stages: list[str]
) -> list[dict[str, Any]]:
    """Returns the rows of an earlier, stopped evaluation that are still valid."""
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
    if len(kept) < len(earlier["rows"]) and is_first_process():
        beside = path.with_name(files.PREVIOUS_RESULTS)
        path.copy(beside, overwrite=True)
        _LOGGER.warning("evaluate: other attacks or images than before; %s has those", beside)
    return kept


def _sentence(row: dict[str, Any]) -> str:
    robust = "".join(f", {name} {accuracy:.2%}" for name, accuracy in row["robust"].items())
    share = row["flops"] / row["total_flops"]
    return (
        f"{row['stage']}: {row['parameters']} of {row['total']} weights (sparsity"
        f" {row['sparsity']:.2%}), {share:.2%} of the FLOPs, natural {row['natural']:.2%}{robust}"
        f" on {row['images']} images"
    )
