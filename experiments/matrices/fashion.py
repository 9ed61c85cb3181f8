"""The comparison of methods on Fashion-MNIST, for `experiments.compare`.

It uses the schedule of `configs/fashion_cnn.py`, in which the authors' code was run once:
10,000 training images, pretrain 8, prune 5 and finetune 8 epochs. For each seed all methods start
from the same dense network, see the same images and train for the same number of epochs; one-shot
methods, which have no epochs of pruning, finetune for 13.
"""

from experiments.matrix import Matrix

MOST_OFTEN = ("HARP", "HARP, alpha=0.3", "HARP, live", "HYDRA", "HYDRA, ERK", "HYDRA, LAMP")
ONE_SHOT = {"finetune.epochs": 5 + 8}

MATRIX = Matrix(
    base="configs/fashion_cnn.py",
    fields={
        "devices": 1,  # run as many processes side by side as there are cores
        "data.test_examples": 1000,
        "evaluate.stages": ("pretrain", "finetune"),
        "evaluate.run": ("pgd10", "pgd20", "autoattack"),
    },
    methods={
        "HARP": {},
        "HARP, alpha=0.3": {"prune.alpha": 0.3},  # chosen on validation data, see fashion_ablation
        "HARP, live": {"prune.live": True},
        "HYDRA": {"prune.method": "score"},
        "HYDRA, ERK": {"prune.method": "score", "prune.strategy": "erk"},
        "HYDRA, LAMP": {"prune.method": "score", "prune.strategy": "lamp"},
        "Robust-ADMM": {"prune.method": "admm", "prune.learning_rate": 0.01, "admm.rho": 0.01},
        "magnitude": {"prune.method": "magnitude", **ONE_SHOT},
        "magnitude, global": {"prune.method": "magnitude", "prune.strategy": "global", **ONE_SHOT},
        "random": {"prune.method": "random", **ONE_SHOT},
        "HARP + S2AP": {"prune.sharpness": 0.02},
    },
    targets=(0.01, 0.05, 0.1),
    more_seeds=dict.fromkeys(MOST_OFTEN, (1, 2)),
    more_targets=dict.fromkeys(("HARP", "HARP, live", "HYDRA", "HYDRA, LAMP"), (0.001,)),
)
