"""The demo: the `cnn` on 5,000 real MNIST digits, 95 % of the weights pruned.

Command:   python -m harp_jax.main --config=configs/mnist_cnn.py --workdir=runs/mnist
Hardware:  any CPU; about a minute and a half on two cores.
Expected:  natural / PGD-20 accuracy on 1,000 test images, seed 0:
           dense 95.7 / 83.9 %, finetuned 94.9 / 84.3 %.
"""

from ml_collections import ConfigDict

from harp_jax import config as harp


def get_config() -> ConfigDict:
    """Returns the whole configuration."""
    config = harp.default()
    config.model = "cnn"
    config.data.name = "mnist5k"
    config.data.validation_examples = 400
    config.data.crop_padding = 0
    config.data.flip = False
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.05
    config.pretrain.epochs = 8
    config.prune.epochs = 6
    config.prune.target = 0.05
    config.prune.gamma0 = 0.1
    config.finetune.epochs = 6
    return config
