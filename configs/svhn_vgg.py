"""VGG16-BN on SVHN (cropped digits) with PGD-AT, 99 % of the weights pruned.

Settings:  the authors', except for those that configs/paper.py lists. Like theirs, training flips
           images at random.
Command:   python -m harp_jax.main --config=configs/svhn_vgg.py --workdir=runs/svhn_vgg
Hardware:  one accelerator or more. A PGD-10 step is 11 forward and backward passes over the batch.
Time:      not measured.
Expected:  not measured. Published (TRADES instead of PGD-AT; natural / AutoAttack accuracy):
           90.60 / 44.36 at 99 % sparsity, AdversarialPruningBenchmark.
"""

from ml_collections import ConfigDict

from harp_jax import config as harp


def get_config() -> ConfigDict:
    """Returns the whole configuration."""
    config = harp.default()
    config.data.name = "svhn_cropped"
    return config
