"""Learning rates of finetuning for each method of `fashion_best`, with one seed.

The rates share the pruned network of a method.

Choose by the column `validation_robust`; no attack runs on test data.
"""

from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrices.fashion_best import TARGETS
from experiments.matrix import Matrix

FIRST, *OTHER_RATES = RATES = (0.1, 0.01, 0.03, 0.2)


def named(method: str, rate: float) -> str:
    """Returns the name of a method with a learning rate of finetuning."""
    return f"{method}, rate={rate:g}"


MATRIX = Matrix(
    base=METHODS.base,
    fields={**METHODS.fields, "evaluate.run": ()},
    methods={
        named(method, rate): {**fields, "finetune.learning_rate": rate}
        for method, fields in METHODS.methods.items()
        for rate in RATES
    },
    pruned={
        named(method, rate): named(method, FIRST)
        for method in METHODS.methods
        for rate in OTHER_RATES
    },
    targets=TARGETS,
)
