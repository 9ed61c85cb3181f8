"""Estimates the hours of the paper's experiments on accelerators, from FLOPs and efficiency.

python -m experiments.hours --efficiency 0.3
python -m experiments.hours --measured benchmarks/results/accelerator.json

A forward pass takes F FLOPs per image (convolutions and dense layers, two per multiply-accumulate),
a backward pass to the image F, a backward pass to image and weights 2 F. A PGD-10 step thus takes
10 * 2 F for the attack and 3 F for the update. With TRADES and MART the update takes 6 F, since it
passes the clean images too; TRADES' attack takes another F for the clean logits. The efficiency is
the fraction of the device's peak that the whole step reaches. Where the file of
`python -m benchmarks.accelerator` is there, it is that of the network's step of TF32 at the largest
batch measured up to 128 images, and the measured device has a column of its own. Otherwise it is an
assumption.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from benchmarks import accelerator_table
from harp_jax import models
from harp_jax.config import default
from harp_jax.config.sections import Config
from harp_jax.pruning.channels import FlopsCost, trace

# Published peaks for dense matrices, in TFLOP/s.
DEVICES = {
    "A100 (TF32)": 156.0,
    "H100 SXM (TF32)": 494.0,
    "TPU v4-8 (4 chips, bf16)": 4 * 275.0,
}
MEASURED = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "accelerator.json"
BATCH, MODE = 128, "tf32"  # of the steps whose efficiency counts
EXPERIMENTS = tuple(
    (data, network) for data in ("CIFAR-10", "SVHN") for network in ("vgg16_bn", "resnet18")
)
TRAIN_IMAGES = {"CIFAR-10": 50_000, "SVHN": 73_257}


@dataclasses.dataclass(frozen=True)
class Passes:
    """Cost of one image in a training step, in units of a forward pass.

    Attributes:
        per_attack_step: Forward and backward pass to the image.
        beside: Cost of the attack apart from its steps.
        update: Forward and backward pass to the weights.
    """

    per_attack_step: int = 2
    beside: int = 0
    update: int = 3

    def total(self, steps: int) -> int:
        """Returns the cost of a training step whose attack makes `steps` steps."""
        return self.per_attack_step * steps + self.beside + self.update


LOSSES = {"pgd": Passes(), "trades": Passes(beside=1, update=6), "mart": Passes(update=6)}


def total_flops(network: str, data: str, loss: str, config: Config) -> float:
    """Returns the FLOPs of all training steps of a run."""
    cost = FlopsCost(trace(models.create(network, 10), (32, 32, 3)))
    images = TRAIN_IMAGES[data] - config.data.validation_examples
    epochs = sum(config[stage].epochs for stage in ("pretrain", "prune", "finetune"))
    return epochs * images * LOSSES[loss].total(config.attack.steps) * cost.total


def measured_steps(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns for each network the row of its plain step from a file of measurements.

    Args:
        record: Content of the file of `benchmarks.accelerator`.

    Returns:
        Rows of `accelerator_table.steps`; none from dry runs.
    """
    rows = accelerator_table.steps(record, small=False)
    fitting = [row for row in rows if row["kind"] == "plain" and row["mode"] == MODE]
    fitting = [row for row in fitting if row["batch"] <= BATCH]
    return {row["network"]: row for row in sorted(fitting, key=lambda row: row["batch"])}


def table(record: Mapping[str, Any] | None, efficiency: float, loss: str) -> str:
    """Returns the hours of all experiments as Markdown.

    Args:
        record: Content of the file of `benchmarks.accelerator`; None if there is none.
        efficiency: Share of the peak where nothing is measured, in (0, 1].
        loss: A key of `LOSSES`.

    Returns:
        The table. It marks the networks whose efficiency is measured.
    """
    steps = {} if record is None else measured_steps(record)
    names = list(DEVICES)
    if record is not None and steps:
        names.append(f"{accelerator_table.device(record)} (measured)")
    heads = (loss, "PFLOPs", "of peak", *names)
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for data, network in EXPERIMENTS:
        flops, row = total_flops(network, data, loss, default()), steps.get(network)
        share = None
        if record is not None and row is not None:
            share = accelerator_table.share_of_peak(record, row)
        rates = [1e12 * peak * (share or efficiency) for peak in DEVICES.values()]
        cells = [f"{flops / rate / 3600:.1f} h" for rate in rates]
        if steps:
            cells.append("" if row is None else f"{flops / row['tflops'] / 3.6e15:.1f} h")
        said = f"{share:.0%}, measured" if share else f"{efficiency:.0%}"
        lines.append(f"| {data}, {network} | {flops / 1e15:.0f} | {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--efficiency", type=float, default=0.3, help="share of the peak (%(default)s)"
    )
    parser.add_argument(
        "--loss", choices=LOSSES, default="trades", help="of the training (%(default)s)"
    )
    parser.add_argument("--measured", type=pathlib.Path, default=MEASURED, help="file of results")
    arguments = parser.parse_args()
    there = arguments.measured.exists()
    if not there and arguments.measured != MEASURED:
        parser.error(f"--measured={arguments.measured}: is not there")
    record = json.loads(arguments.measured.read_text()) if there else None
    print(table(record, arguments.efficiency, arguments.loss))


if __name__ == "__main__":
    main()
