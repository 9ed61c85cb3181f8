r"""Each option of HARP, best alone on and alone off, on CIFAR-10 with a narrow ResNet18.

    python -m experiments.compare --matrix=experiments/matrices/cifar_jpeg_options.py \
        --runs=runs/cifar --set data.name=npz:cifar10.npz --jobs=2

It shares networks with `cifar_jpeg`. A seed takes a core about five hours. Compare the column
`validation_robust`; no attack runs on test data.
"""

import dataclasses

from experiments.matrices import cifar_jpeg, fashion_best_options

MATRIX = dataclasses.replace(
    fashion_best_options.MATRIX,
    base=cifar_jpeg.MATRIX.base,
    fields={**cifar_jpeg.MATRIX.fields, "evaluate.run": ()},
    targets=(0.001,),  # where the methods differ most
)
