"""The schedule of `configs/fashion_cnn.py`, in which the authors' own code was run once.

10,000 training images of Fashion-MNIST, pretrain 8, prune 5 and finetune 8 epochs.
"""

from experiments.matrix import Matrix

MATRIX = Matrix(
    base="configs/fashion_cnn.py",
    fields={
        "devices": 1,
        "data.test_examples": 1000,
        "evaluate.stages": ("pretrain", "finetune"),
        "evaluate.run": ("pgd10", "pgd20", "autoattack"),
    },
    methods={
        "HARP": {},
        "HARP, live": {"prune.live": True},
        "HYDRA": {"prune.method": "score"},
    },
    targets=(0.01, 0.05),
    more_seeds={"HARP": (1, 2), "HARP, live": (1, 2), "HYDRA": (1, 2)},
)
