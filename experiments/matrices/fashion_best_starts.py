"""The rates to start from, and how long the target comes down, with one seed.

Choose by accuracies on images that no run has used (`experiments.held_out`); no attack runs on test
data. All are without `prune.window`. `fashion_best` has what was chosen.
"""

from experiments.matrices.fashion_best import FROM_LAMP, NO_WINDOW, OTHERS
from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrix import Fields, Matrix

BEST = NO_WINDOW
LAMP_FIRST: Fields = {**FROM_LAMP, "prune.window": 0.0}
LAMP = OTHERS["HYDRA, LAMP, best"]
SLOWLY: Fields = {"prune.anneal": 0.8}

MATRIX = Matrix(
    base=METHODS.base,
    fields={**METHODS.fields, "evaluate.run": ()},
    methods={
        "HARP, best": BEST,
        "HARP, best, anneal=0.8": {**BEST, **SLOWLY},
        "HARP, best, from LAMP, anneal=0.5": {**LAMP_FIRST, "prune.anneal": 0.5},
        "HARP, best, from LAMP": LAMP_FIRST,
        "HARP, best, from ERK": {**BEST, "prune.strategy": "erk"},
        "HARP, best, from ERK at 0.3": {
            **BEST,
            "prune.strategy": "erk",
            "prune.initial_rate": 0.3,
        },
        "HARP, best, from dense": {**BEST, "prune.initial_rate": 1.0},
        "HYDRA, LAMP, best": LAMP,
        "HYDRA, LAMP, best, anneal=0.8": {**LAMP, **SLOWLY},
        "HYDRA, LAMP, best, live, anneal=0.8": {**LAMP, **SLOWLY, "prune.live": True},
        "HYDRA, ERK, best": {**LAMP, "prune.strategy": "erk"},
    },
    targets=(0.01,),
    more_targets=dict.fromkeys(
        (
            "HARP, best",
            "HARP, best, anneal=0.8",
            "HARP, best, from LAMP, anneal=0.5",
            "HARP, best, from LAMP",
            "HYDRA, LAMP, best",
        ),
        (0.001,),
    ),
)
