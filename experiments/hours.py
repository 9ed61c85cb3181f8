"""Estimates the hours of the paper's experiments on accelerators, from FLOPs and efficiency.

python -m experiments.hours --efficiency 0.3

A forward pass takes F FLOPs per image (convolutions and dense layers, two per multiply-accumulate),
a backward pass to the image F, a backward pass to image and weights 2 F. A PGD-10 step thus takes
10 * 2 F for the attack and 3 F for the update. With TRADES and MART the update takes 6 F, since it
passes the clean images too; TRADES' attack takes another F for the clean logits. The efficiency is
the fraction of the device's peak that the whole step reaches. It is an assumption until
`python -m benchmarks.train_step` has measured it on that device.
"""

import argparse
import dataclasses

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


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--efficiency", type=float, default=0.3, help="share of the peak")
    parser.add_argument("--loss", choices=LOSSES, default="trades")
    arguments = parser.parse_args()
    print(f"| {arguments.loss} | PFLOPs | {' | '.join(DEVICES)} |")
    print("|---" * (len(DEVICES) + 2) + "|")
    for data, network in EXPERIMENTS:
        flops = total_flops(network, data, arguments.loss, default())
        hours = [flops / (1e12 * peak * arguments.efficiency) / 3600 for peak in DEVICES.values()]
        cells = " | ".join(f"{each:.1f} h" for each in hours)
        print(f"| {data}, {network} | {flops / 1e15:.0f} | {cells} |")


if __name__ == "__main__":
    main()
