"""The matrix method x sparsity x seed on Fashion-MNIST: what `experiments.compare` runs.

Every method starts from the same dense network (of its seed), sees the same images and makes the
same number of epochs; those that learn nothing while pruning finetune so much longer.
"""

from experiments.matrix import Matrix

PRUNE, FINETUNE = 6, 10  # epochs
ONE_SHOT = {"finetune.epochs": PRUNE + FINETUNE}

MATRIX = Matrix(
    base="configs/fashion_cnn.py",
    fields={
        "devices": 1,  # run as many processes side by side as there are cores
        "data.train_examples": 20_000,
        "data.test_examples": 1000,
        "pretrain.epochs": 10,
        "prune.epochs": PRUNE,
        "finetune.epochs": FINETUNE,
        "evaluate.stages": ("pretrain", "finetune"),
        "evaluate.run": ("pgd10", "pgd20", "autoattack"),
    },
    methods={
        "HARP": {},
        "HARP, live": {"prune.live": True},
        "HYDRA": {"prune.method": "score"},
        "HYDRA, ERK": {"prune.method": "score", "prune.strategy": "erk"},
        "HYDRA, LAMP": {"prune.method": "score", "prune.strategy": "lamp"},
        "Robust-ADMM": {"prune.method": "admm", "prune.learning_rate": 0.01, "admm.rho": 0.1},
        "magnitude": {"prune.method": "magnitude", **ONE_SHOT},
        "magnitude, global": {"prune.method": "magnitude", "prune.strategy": "global", **ONE_SHOT},
        "random": {"prune.method": "random", **ONE_SHOT},
        "HARP + S2AP": {"prune.sharpness": 0.05},
    },
    targets=(0.01, 0.05, 0.1),
    more_seeds={"HARP": (1, 2), "HARP, live": (1, 2)},
    more_targets={"HARP": (0.001,), "HARP, live": (0.001,), "HYDRA": (0.001,)},
)
