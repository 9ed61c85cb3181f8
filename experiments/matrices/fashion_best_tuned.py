"""HARP, best and HYDRA with LAMP's rates at the finetuning rates that each of them wants.

`fashion_best_rates` has the grid. The networks are pruned as in `fashion_best`, which these share,
and finetuned again.
"""

import dataclasses

from experiments.matrices.fashion_best import BEST, OTHERS
from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrix import Fields

PRUNED: dict[str, Fields] = {
    "HARP, best": BEST,
    "HYDRA, LAMP, best": OTHERS["HYDRA, LAMP, best"],
}
AT_OTHER_RATES = {
    f"{method}, finetuned at {rate:g}": (method, rate)
    for method, rate in (
        ("HARP, best", 0.2),
        ("HYDRA, LAMP, best", 0.2),
        ("HYDRA, LAMP, best", 0.01),
    )
}

MATRIX = dataclasses.replace(
    METHODS,
    methods={
        **PRUNED,
        **{
            name: {**PRUNED[method], "finetune.learning_rate": rate}
            for name, (method, rate) in AT_OTHER_RATES.items()
        },
    },
    dense={},
    pruned={name: method for name, (method, _) in AT_OTHER_RATES.items()},
    targets=(0.001,),
    more_targets={name: (0.01,) for name in (*PRUNED, *AT_OTHER_RATES) if "at 0.01" not in name},
    seeds=(0, 1, 2, 3, 4),
    more_seeds={},
)
