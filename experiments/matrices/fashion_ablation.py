"""The effect of single settings, and of a few pairs, at 99 % sparsity.

Settings may be chosen by the column `validation_robust`.
"""

from collections.abc import Mapping

from experiments.matrices import fashion
from experiments.matrix import Fields, Matrix

CHANGES: dict[str, Fields] = {
    "gamma0=0.03": {"prune.gamma0": 0.03},
    "gamma0=0.3": {"prune.gamma0": 0.3},
    "alpha=0.01": {"prune.alpha": 0.01},
    "alpha=0.3": {"prune.alpha": 0.3},
    "initial_rate=0.03": {"prune.initial_rate": 0.03},
    "initial_rate=0.3": {"prune.initial_rate": 0.3},
    "initial_rate=0.73": {"prune.initial_rate": 0.73},
    "strategy=erk": {"prune.strategy": "erk"},
    "strategy=lamp": {"prune.strategy": "lamp"},
    "clip_norm=0": {"prune.clip_norm": 0.0},
    "learning_rate=0.03": {"prune.learning_rate": 0.03},
    "finetune.learning_rate=0.03": {"finetune.learning_rate": 0.03},
    "rates only": {"prune.method": "rate"},
    "scores only": {"prune.method": "score"},
}
OF_LIVE = (
    *("strategy=erk", "strategy=lamp", "initial_rate=0.03", "gamma0=0.03", "learning_rate=0.03"),
    *("alpha=0.3", "finetune.learning_rate=0.03", "rates only", "scores only"),
)
START = {"alpha=0.3, initial_rate=0.03": {"prune.alpha": 0.3, "prune.initial_rate": 0.03}}
SLOWER = {"learning_rate=0.03": CHANGES["learning_rate=0.03"]}
BOTH = {"gamma0=0.03, learning_rate=0.03": {"prune.gamma0": 0.03, "prune.learning_rate": 0.03}}
# With three seeds:
TUNED = {
    "HARP": {name: CHANGES[name] for name in ("alpha=0.3", "initial_rate=0.03")} | START,
    "HARP, live": {name: CHANGES[name] for name in ("gamma0=0.03", "learning_rate=0.03")} | BOTH,
}
# What the one run of the authors' code kept of each layer: 141, 160, 112, 141 and 425 weights.
AUTHORS = "json:experiments/matrices/authors_rates_99.json"


def changed(name: str, changes: Mapping[str, Fields]) -> dict[str, Fields]:
    """A method of the matrix with each of some changes, 'METHOD, CHANGE'."""
    method = fashion.MATRIX.methods[name]
    return {f"{name}, {change}": {**method, **fields} for change, fields in changes.items()}


MATRIX = Matrix(
    base=fashion.MATRIX.base,
    fields={**fashion.MATRIX.fields, "evaluate.run": ("pgd10", "pgd20")},
    methods={
        "HARP": {},
        **changed("HARP", CHANGES | START),
        **changed("HYDRA", {"the authors' rates": {"prune.strategy": AUTHORS}}),
        **changed("HYDRA, ERK", SLOWER),
        **changed("HYDRA, LAMP", SLOWER),
        **changed(
            "HARP + S2AP",
            {f"sharpness={by:g}": {"prune.sharpness": by} for by in (0.02, 0.05, 0.2)},
        ),
        "HARP, live": fashion.MATRIX.methods["HARP, live"],
        **changed("HARP, live", {change: CHANGES[change] for change in OF_LIVE} | BOTH),
        **changed("Robust-ADMM", {f"rho={rho:g}": {"admm.rho": rho} for rho in (0.01, 0.1, 1)}),
    },
    targets=(0.01,),
    more_seeds=dict.fromkeys(
        [each for name, changes in TUNED.items() for each in (name, *changed(name, changes))],
        (1, 2),
    ),
)
