"""What HARP's settings do, at 99 % sparsity, each changed alone against the matrix of methods.

The column `validation_robust` is what settings may be chosen by.
"""

from experiments.matrices import fashion
from experiments.matrix import Matrix

CHANGES = {
    "gamma0=0.03": {"prune.gamma0": 0.03},
    "gamma0=0.3": {"prune.gamma0": 0.3},
    "alpha=0.01": {"prune.alpha": 0.01},
    "alpha=0.3": {"prune.alpha": 0.3},
    "initial_rate=0.03": {"prune.initial_rate": 0.03},
    "initial_rate=0.3": {"prune.initial_rate": 0.3},
    "strategy=erk": {"prune.strategy": "erk"},
    "strategy=lamp": {"prune.strategy": "lamp"},
    "clip_norm=0": {"prune.clip_norm": 0.0},
    "learning_rate=0.03": {"prune.learning_rate": 0.03},
    "finetune.learning_rate=0.03": {"finetune.learning_rate": 0.03},
    "live": {"prune.live": True},
    "live, gamma0=0.03": {"prune.live": True, "prune.gamma0": 0.03},
    "live, initial_rate=0.03": {"prune.live": True, "prune.initial_rate": 0.03},
    "live, finetune.learning_rate=0.03": {"prune.live": True, "finetune.learning_rate": 0.03},
    "live, scores only": {"prune.live": True, "prune.method": "score"},
    "rates only": {"prune.method": "rate"},
    "scores only": {"prune.method": "score"},
}

MATRIX = Matrix(
    base=fashion.MATRIX.base,
    fields={**fashion.MATRIX.fields, "evaluate.run": ("pgd10", "pgd20")},
    methods={"HARP": {}, **CHANGES},
    targets=(0.01,),
)
