"""The experiment of the fault campaign: 600 weights, four steps an epoch, every kind of file."""

from ml_collections import ConfigDict

from harp_jax import config as harp

SETTINGS = {
    "model": "small_networks:convnet",
    "sparse": "off",
    "data.validation_examples": 64,
    "data.train_examples": 256,
    "data.test_examples": 64,
    "attack.steps": 2,
    "pretrain.epochs": 2,
    "prune.epochs": 2,
    "finetune.epochs": 1,
    "checkpoint_every_steps": 3,
    "evaluate.batch_size": 64,
    "evaluate.run": ("fgsm", "autoattack"),
    "evaluate.stages": ("pretrain", "finetune"),
}


def get_config() -> ConfigDict:
    config = harp.load("digits")
    config.update_from_flattened_dict(SETTINGS)
    small = config.evaluate.attacks.autoattack.unlock()
    small.update({"version": "apgd-ce+square", "steps": 3, "queries": 10})
    return config
