"""The `cnn` on Fashion-MNIST, 99 % of the weights pruned.

Command:   python -m harp_jax.main --config=configs/fashion_cnn.py --workdir=runs/fashion
Hardware:  any CPU.
"""

from ml_collections import ConfigDict

from harp_jax import config as harp


def get_config() -> ConfigDict:
    config = harp.default()
    config.model = "cnn"
    config.data.name = "idx:/usr/share/datasets/fashion-mnist"
    config.data.crop_padding = 0
    config.data.train_examples = 10_000
    config.attack.epsilon = 0.1
    config.attack.step_size = 0.02
    config.pretrain.epochs = 8
    config.prune.epochs = 5
    config.prune.target = 0.01
    config.prune.gamma0 = 0.1
    config.finetune.epochs = 8
    return config
