"""What settings do, at 99 % sparsity, each changed alone against the matrix of methods.

The column `validation_robust` is what settings may be chosen by.
"""

from experiments.matrices import fashion
from experiments.matrix import Matrix

HARP = {
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
    "rates only": {"prune.method": "rate"},
    "scores only": {"prune.method": "score"},
}
LIVE = (
    *("strategy=erk", "strategy=lamp", "initial_rate=0.03", "gamma0=0.03", "learning_rate=0.03"),
    *("finetune.learning_rate=0.03", "rates only", "scores only"),
)
ADMM = fashion.MATRIX.methods["Robust-ADMM"]

MATRIX = Matrix(
    base=fashion.MATRIX.base,
    fields={**fashion.MATRIX.fields, "evaluate.run": ("pgd10", "pgd20")},
    methods={
        "HARP": {},
        **{f"HARP, {change}": fields for change, fields in HARP.items()},
        **{f"HARP + S2AP, sharpness={by:g}": {"prune.sharpness": by} for by in (0.02, 0.05, 0.2)},
        "HARP, live": {"prune.live": True},
        **{f"HARP, live, {change}": {"prune.live": True, **HARP[change]} for change in LIVE},
        **{f"Robust-ADMM, rho={rho:g}": {**ADMM, "admm.rho": rho} for rho in (0.01, 0.1, 1)},
    },
    targets=(0.01,),
)
