"""Measures every stage's network on the test split and writes results.json."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from harp_jax import checkpoint
from harp_jax.config.sections import attacks_to_run
from harp_jax.run.examples import write_examples
from harp_jax.run.kept import doubts, keep_previous, of_earlier
from harp_jax.run.rows import Measurer, Subject
from harp_jax.training.stages import STAGES
from harp_jax.workdir import files, records, write_json
from harp_jax.workdir.checksums import signed
from harp_jax.workdir.records import Row

_LOGGER = logging.getLogger(__name__)


def evaluate(
    subject: Subject, header: dict[str, Any], stop_requested: Callable[[], bool]
) -> dict[str, Any]:
    """Measures the networks of complete stages; continues a stopped evaluation.

    What an earlier evaluation measured of the same networks on the same test images stays, and only
    what is missing is measured. An attack whose settings have changed is measured anew, and the
    table before is copied to results.previous.json.

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
        ReportError: If results.json is there and cannot be read.
        ValueError: If a network's logits are not finite; rows of stages before it are saved.
    """
    config, workdir, dataset = subject.config, subject.workdir, subject.dataset
    networks = {
        stage: checkpoint.load(workdir / stage)
        for stage in STAGES
        if checkpoint.is_complete(workdir / stage)
    }
    metadata = {stage: network.pop("metadata") for stage, network in networks.items()}
    attacks = attacks_to_run(config)
    settings = {name: config.evaluate.attacks[name].to_dict() for name in attacks}
    images = {"images_digest": dataset.test.digest(), "seed": config.seed}
    images |= {"matmul_precision": subject.precision_name()}
    owners = {
        stage: {"network_digest": checkpoint.digest(network), **images}
        for stage, network in networks.items()
    }
    earlier = records.read_table(workdir)
    if earlier is None and (workdir / files.EXAMPLES).exists():  # written after the table
        _LOGGER.warning("%s: is gone; all networks are measured again", workdir / files.RESULTS)
    kept = of_earlier(earlier, settings, owners)
    keep_previous(earlier, kept, workdir)
    settings = {**kept.settings, **settings}
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
        "notes": [note for stage in networks for note in metadata[stage]["notes"]],
    }
    measurer, rows = Measurer(subject, attacks, stop_requested), dict(kept.rows)
    for stage, variables in networks.items():
        if stage not in config.evaluate.stages or not measurer.lacks(rows.get(stage)):
            continue
        row = measurer.row(variables, stage, rows.get(stage)) | owners[stage]
        row["checkpoint_epoch"] = metadata[stage]["epoch"]
        row["warnings"] = doubts(row, settings, dataset.num_classes)
        rows[stage] = row
        _LOGGER.info("%s", _sentence(row))
        for warning in row["warnings"]:
            _LOGGER.warning("%s: %s", stage, warning)
        write_json(workdir / files.RESULTS, signed({**results, "rows": _in_order(rows)}))
    if attacks:
        measured = [row["stage"] for row in _in_order(rows)]
        write_examples(subject, measured, *list(attacks.items())[-1])
    results = {**results, "complete": True, "rows": _in_order(rows)}
    write_json(workdir / files.RESULTS, signed(results))
    return results


def _in_order(rows: Mapping[str, Row]) -> list[Row]:
    return [rows[stage] for stage in STAGES if stage in rows]


def _sentence(row: dict[str, Any]) -> str:
    robust = "".join(f", {name} {accuracy:.2%}" for name, accuracy in row["robust"].items())
    share = row["flops"] / row["total_flops"]
    return (
        f"{row['stage']}: {row['parameters']} of {row['total']} weights (sparsity"
        f" {row['sparsity']:.2%}), {share:.2%} of the FLOPs, natural {row['natural']:.2%}{robust}"
        f" on {row['images']} images"
    )
