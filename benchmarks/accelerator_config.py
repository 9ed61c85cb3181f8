"""The runs of `benchmarks.accelerator` on CIFAR-10: short experiments of configs/paper.py."""

from ml_collections import ConfigDict

from harp_jax import config as harp

SMALL = "-small"  # a dry run's
FIELDS = {
    "width": 0.125,
    "devices": 1,
    "batch_size": 32,
    "attack.steps": 2,
    "pretrain.epochs": 1,
    "prune.epochs": 1,
    "finetune.epochs": 1,
    "data.validation_examples": 32,
    "data.train_examples": 256,
    "data.test_examples": 16,
    "evaluate.batch_size": 16,
}
AUTOATTACK = {"steps": 2, "targets": 2, "queries": 5}


def get_config(name: str = "vgg16_bn") -> ConfigDict:
    """Returns the configuration of a run.

    Args:
        name: 'vgg16_bn' or 'resnet18'; with '-small' at its end for a dry run.
    """
    config = harp.load(f"paper:cifar10-{name.removesuffix(SMALL)}-short-99")
    config.evaluate.stages = ("pretrain", "finetune")
    if name.endswith(SMALL):
        config.update_from_flattened_dict(FIELDS)
        config.evaluate.attacks.autoattack.update(AUTOATTACK)
    return config
