"""Learning rates of finetuning for each method of `fashion_best`, with one seed.

Choose by the column `validation_robust`; no attack runs on test data.
"""

from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrices.fashion_best import TARGETS
from experiments.matrix import Matrix

RATES = (0.01, 0.03, 0.1, 0.2)

MATRIX = Matrix(
    base=METHODS.base,
    fields={**METHODS.fields, "evaluate.run": ()},
    methods={
        f"{method}, rate={rate:g}": {**fields, "finetune.learning_rate": rate}
        for method, fields in METHODS.methods.items()
        for rate in RATES
    },
    targets=TARGETS,
)
