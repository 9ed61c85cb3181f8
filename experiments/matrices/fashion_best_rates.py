"""Learning rates of finetuning for each method of `fashion_best`, with one seed.

The rates share the pruned network of a method.

Compare the column `validation_robust`, or accuracies on images that no run has used
(`experiments.held_out`); no attack runs on test data.
"""

from experiments.matrices.fashion_best import BEST, FROM_LAMP, OTHERS, TARGETS
from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrix import Fields, Matrix

BIRD = OTHERS["Flying Bird"]
TUNED: dict[str, Fields] = {
    "HARP, best": BEST,
    "HARP, best, from LAMP": FROM_LAMP,
    "HYDRA, LAMP, best": OTHERS["HYDRA, LAMP, best"],
    "Flying Bird": BIRD,
    "Flying Bird, drop=0.1": {**BIRD, "flying_bird.drop": 0.1},
    "Twin-Rep": OTHERS["Twin-Rep"],
}
FIRST, *OTHER_RATES = RATES = (0.1, 0.01, 0.03, 0.2)


def named(method: str, rate: float) -> str:
    """Returns the name of a method with a learning rate of finetuning."""
    return f"{method}, rate={rate:g}"


MATRIX = Matrix(
    base=METHODS.base,
    fields={**METHODS.fields, "evaluate.run": ()},
    methods={
        named(method, rate): {**fields, "finetune.learning_rate": rate}
        for method, fields in TUNED.items()
        for rate in RATES
    },
    pruned={named(method, rate): named(method, FIRST) for method in TUNED for rate in OTHER_RATES},
    targets=TARGETS,
)
