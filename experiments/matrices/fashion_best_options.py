"""Each option of HARP, best alone: on from HARP, live, and off from HARP, best.

Compare the column `validation_robust`; no attack runs on test data. Options of finetuning share the
pruned network that they are compared with.
"""

from experiments.matrices.fashion_best import BEST, LIVE, OPTIONS, TARGETS
from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrix import Fields, Matrix


def without(option: Fields) -> dict[str, Fields]:
    """Returns the best fields without those of an option."""
    return {name: value for name, value in BEST.items() if name not in option}


AFTER_PRUNING = ("average", "finetuning rate")

MATRIX = Matrix(
    base=METHODS.base,
    fields={**METHODS.fields, "evaluate.run": ()},
    methods={
        "HARP, live": LIVE,
        **{f"HARP, live, with {name}": {**LIVE, **of} for name, of in OPTIONS.items()},
        "HARP, best": BEST,
        **{
            f"HARP, best, without {name}": without(of)
            for name, of in {"live": LIVE, **OPTIONS}.items()
        },
    },
    pruned={
        **{f"HARP, live, with {name}": "HARP, live" for name in AFTER_PRUNING},
        **{f"HARP, best, without {name}": "HARP, best" for name in AFTER_PRUNING},
    },
    targets=TARGETS,
    seeds=(0, 1, 2),
)
