"""Every experiment of the paper by its name, DATA-NETWORK-LOSS-BUDGET.

Command:   python -m harp_jax.main --config=configs/paper.py:NAME --workdir=runs/NAME
Example:   NAME=cifar10-resnet18-trades-99
Names:     DATA     cifar10, svhn or imagenet
           NETWORK  vgg16_bn, resnet18 or wrn_28_4; for imagenet resnet50
           LOSS     pgd, trades or mart; for imagenet free; short: pgd, with 30, 6 and 30 epochs of
                    the stages in place of 100, 20 and 100, and with PGD and AutoAttack on the first
                    1,000 test images; not of the paper
           BUDGET   percentage of the weights to remove: 90, 95, 99, 99.9, or any other in (0, 100);
                    with 'channels' in front, percentage of the channels: channels50
Settings:  the authors', from their configuration files, README and code, except for

  seed               0; theirs is 1234. Their random numbers cannot be repeated with any seed.
  prune.clip_norm    1: the training loss's gradient is clipped to this norm while pruning.
                     Theirs is not clipped: 0 turns clipping off.
  data.select_on     'validation': epochs are chosen on 1,000 images (imagenet: 10,000) taken from
                     the train split. Theirs are chosen on the test split, and all train images
                     train: 'test' with data.validation_examples=0.
  evaluate.run       fgsm, pgd10, cw20, pgd20 (5 restarts). Theirs: fgsm, pgd10, CW with 20 steps,
                     APGD on the cross-entropy with 50 steps and 5 restarts, and torchattacks'
                     AutoAttack. cw20, apgd (100 steps, 1 restart) and autoattack come closest.
  prune.above_target 'shift': rates are shifted onto the target if pruning ends above it. Theirs
                     then saves no network to finetune.
  imagenet           pretrains for 100 epochs. Theirs prunes the network that the authors of Free-AT
                     published: prune.source takes the checkpoint of such a network.
  channels           prune.gamma0 as for weights, 0.01 (imagenet: 0.1). They publish none for
                     channels; their code's default is 1. It has channel costs for vgg16_bn and
                     resnet18 only, and none for Free-AT.
  wrn_28_4           starts at a rate of 0.1 in every layer (channels: 1) as the other networks do.
                     Theirs has no initial rates for it.
  BUDGET below 90    starts at the target's rate, since that is above their 0.1.

docs/differences.md lists where the code itself differs from theirs.
A 'short' run trains for an estimated 9 minutes (resnet18) or 5 (vgg16_bn) on an H100 at 30 % of its
peak (TF32), compilation and AutoAttack apart. Its dense network serves others, for another budget
or method: --config.prune.source=runs/SHORT/pretrain
Hardware:  one accelerator or more; eight are recommended for imagenet.
Time, expected numbers: not measured. Published (AutoAttack with epsilon 0.031, TRADES, 99 % of the
           weights removed; AdversarialPruningBenchmark), natural / robust accuracy in %:
           CIFAR-10 resnet18 83.11 / 45.50, vgg16_bn 79.42 / 42.02; SVHN vgg16_bn 90.60 / 44.36.
"""

import itertools

from ml_collections import ConfigDict

from harp_jax import config as harp
from harp_jax.names import hint

SMALL_IMAGES = {"cifar10": "cifar10", "svhn": "svhn_cropped"}
NETWORKS = ("vgg16_bn", "resnet18", "wrn_28_4")
LOSSES = ("pgd", "trades", "mart")
SHORT = "short"
SHORT_EPOCHS = {"pretrain": 30, "prune": 6, "finetune": 30}
BUDGETS = ("90", "95", "99", "99.9", "channels50")
NAMES = (
    *map("-".join, itertools.product(SMALL_IMAGES, NETWORKS, (*LOSSES, SHORT), BUDGETS)),
    *(f"imagenet-resnet50-free-{budget}" for budget in BUDGETS),
)
CHANNELS = "channels"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_config(name: str = "cifar10-vgg16_bn-pgd-99") -> ConfigDict:
    """Returns the configuration of an experiment of the paper.

    Args:
        name: DATA-NETWORK-LOSS-BUDGET; see the head of this file.

    Returns:
        The whole configuration.

    Raises:
        ValueError: If the name is not of that form.
    """
    config = harp.default()
    *experiment, budget = name.split("-")
    match experiment:
        case [data, model, loss] if data in SMALL_IMAGES and model in NETWORKS and loss in LOSSES:
            config.data.name = SMALL_IMAGES[data]
            config.model, config.loss = model, loss
        case [data, model, loss] if data in SMALL_IMAGES and model in NETWORKS and loss == SHORT:
            config.data.name = SMALL_IMAGES[data]
            config.model = model
            _short(config)
        case ["imagenet", "resnet50", "free"]:
            _imagenet(config)
        case _:
            near = hint(name, NAMES)
            raise ValueError(f"{name!r}: {near}allowed are DATA-NETWORK-LOSS-BUDGET, as {NAMES[0]}")
    _budget(config, budget)
    return config


def _budget(config: ConfigDict, text: str) -> None:
    if text.startswith(CHANNELS):
        config.prune.granularity = "channel"
        config.prune.initial_rate = 1.0
    try:
        percentage = float(text.removeprefix(CHANNELS))
    except ValueError:
        percentage = -1.0
    if not 0 < percentage < 100:
        raise ValueError(f"budget {text!r}: allowed are percentages that go, as 99 or channels50")
    config.prune.target = round(1 - percentage / 100, 6)
    config.prune.initial_rate = max(config.prune.initial_rate, config.prune.target)


def _short(config: ConfigDict) -> None:
    for stage, epochs in SHORT_EPOCHS.items():
        config[stage].epochs = epochs
    config.data.test_examples = 1000
    config.evaluate.run = ("pgd20", "autoattack")


def _imagenet(config: ConfigDict) -> None:
    config.model, config.loss = "resnet50", "free"
    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.validation_examples = 10_000
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.data.crop_padding = 0
    config.batch_size = 256
    config.attack.epsilon = 0.0156
    config.attack.step_size = 0.00392
    config.optimizer.weight_decay = 1e-4
    config.prune.epochs = 5
    config.prune.gamma0 = 0.1
    config.finetune.epochs = 25
