r"""HARP and others on CIFAR-10 with a ResNet18 of a quarter of the channels, in a short schedule.

The images come from an .npz file that the command line names (see `harp_jax.data.npz`):

    python -m experiments.compare --matrix=experiments/matrices/cifar_jpeg.py --runs=runs/cifar \
        --set data.name=npz:cifar10.npz --jobs=2 --hours=8

An epoch of a dense network takes a core four minutes. Batches of 64 and PGD-7 training (Madry et
al., ICLR 2018) make more steps of the time. Call results of images that went through JPEG "CIFAR-10
(JPEG)": they are not those of CIFAR-10.
"""

from experiments.matrices.fashion_best import BEST, LIVE, NO_WINDOW, OTHERS
from experiments.matrix import Matrix

MATRIX = Matrix(
    base="configs/cifar_vgg.py",
    fields={
        "devices": 1,  # run as many processes side by side as there are cores
        "model": "resnet18",
        "width": 0.25,
        "data.train_examples": 10_000,
        "data.test_examples": 1000,
        "batch_size": 64,
        "attack.steps": 7,
        "pretrain.epochs": 10,
        "prune.epochs": 5,
        "prune.gamma0": 0.1,  # the rates have only these few steps
        "finetune.epochs": 8,
        "evaluate.stages": ("pretrain", "finetune"),
        "evaluate.run": ("pgd20", "autoattack"),
    },
    methods={
        "HARP": {},
        "HARP, live": LIVE,
        "HARP, best": BEST,
        "HARP, best, without window": NO_WINDOW,
        **OTHERS,
    },
    targets=(0.05, 0.01, 0.001),
    seeds=(0, 1, 2),
)
