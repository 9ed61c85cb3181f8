"""VGG16-BN on CIFAR-10 with PGD-AT, 99 % of the weights pruned.

Settings:  the authors', except for those that configs/paper.py lists.

Command:   python -m harp_jax.main --config=configs/cifar_vgg.py --workdir=runs/cifar_vgg
Hardware:  one accelerator or more. A PGD-10 step is 11 forward and backward passes over the batch.
Time:      not measured.
Expected:  not measured. Published (TRADES instead of PGD-AT; natural / robust accuracy):
           79.42 / 42.02 at 99 % sparsity, AdversarialPruningBenchmark.
"""

from ml_collections import ConfigDict

from harp_jax import config as harp


def get_config() -> ConfigDict:
    """Returns the whole configuration."""
    return harp.default()
