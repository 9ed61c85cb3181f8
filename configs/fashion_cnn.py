"""The `cnn` on 10,000 images of Fashion-MNIST, 99 % of the weights pruned, in a short schedule.

Command:   python -m harp_jax.main --config=configs/fashion_cnn.py --workdir=runs/fashion
Data:      Debian's package dataset-fashion-mnist, or any folder with the four IDX files.
Hardware:  any CPU; about three minutes on two cores, plus one to attack all test images.
Expected:  natural / PGD-10 accuracy on the first 1,000 test images, mean of seeds 0 to 2 on one
           device: dense 79.4 / 67.4 %, finetuned 74.0 / 64.9 %, 76.6 / 67.1 % with
           --config.prune.live=True (experiments/results/fashion_matrix.csv).
"""

from ml_collections import ConfigDict

from harp_jax import config as harp


def get_config() -> ConfigDict:
    """Returns the whole configuration."""
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
