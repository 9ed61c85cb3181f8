r"""HARP and others on CIFAR-10 with networks of a quarter of the channels, in a short schedule.

The images come from an .npz file that the command line names (see `harp_jax.data.npz`);
`--set model=resnet18` takes that network instead:

    python -m experiments.compare --matrix=experiments/matrices/cifar_jpeg.py --runs=runs/cifar \
        --set data.name=npz:cifar10.npz --jobs=2 --hours=8

Call results of images that went through JPEG "CIFAR-10 (JPEG)": they are not those of CIFAR-10.
"""

from experiments.matrices.fashion_best import BEST, LIVE, OTHERS
from experiments.matrix import Matrix

MATRIX = Matrix(
    base="configs/cifar_vgg.py",
    fields={
        "devices": 1,  # run as many processes side by side as there are cores
        "model": "vgg16_bn",
        "width": 0.25,
        "data.train_examples": 10_000,
        "data.test_examples": 1000,
        "pretrain.epochs": 16,
        "prune.epochs": 8,
        "finetune.epochs": 12,
        "evaluate.stages": ("pretrain", "finetune"),
        "evaluate.run": ("pgd10", "autoattack"),
    },
    methods={"HARP": {}, "HARP, live": LIVE, "HARP, best": BEST, **OTHERS},
    targets=(0.05, 0.01),
)
