"""The smallest run: the `tiny` network on scikit-learn's 8x8 digits, 80 % of the weights pruned.

Command:   python -m harp_jax.main --config=configs/digits.py --workdir=runs/digits
Hardware:  any CPU; half a minute on two cores.
Expected:  natural / PGD-20 accuracy on 359 test images, seed 0:
           dense 96.9 / 71.0 %, finetuned 97.8 / 71.6 % (two cores).
"""

from ml_collections import ConfigDict

from harp_jax import config as harp


def get_config() -> ConfigDict:
    """Returns the whole configuration."""
    config = harp.default()
    config.model = "tiny"
    config.data.name = "digits"
    config.data.validation_examples = 150
    config.data.crop_padding = 0
    config.data.flip = False
    config.batch_size = 64
    config.attack.epsilon = 0.1
    config.attack.step_size = 0.025
    config.pretrain.epochs = 6
    config.prune.epochs = 6
    config.prune.target = 0.2
    config.prune.initial_rate = 0.5
    config.prune.gamma0 = 0.1
    config.finetune.epochs = 4
    config.evaluate.batch_size = 128
    return config
