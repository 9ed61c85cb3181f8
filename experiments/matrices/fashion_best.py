"""HARP with the options that help it, beside the best of others, on Fashion-MNIST.

Every pruning method starts from the same dense network of its seed, trains for 5 and 8 epochs more
and finetunes with the same extras, so that the columns compare what is kept. `fashion_best_options`
turns the options on and off one by one; `fashion_best_rates` and `fashion_best_tuned` finetune at
other rates.
"""

from experiments.matrices import fashion
from experiments.matrix import Fields, Matrix

LIVE: Fields = {"prune.live": True}
# What the options of HARP, best are, by name.
OPTIONS: dict[str, Fields] = {
    "window": {"prune.window": 0.5},
    "joint": {"prune.joint": True},
    "anneal": {"prune.anneal": 0.5},
    "fill": {"prune.fill": True},
    "average": {"finetune.average": 0.98},
    "finetuning rate": {"finetune.learning_rate": 0.1},
}
FINETUNING: Fields = {**OPTIONS["average"], **OPTIONS["finetuning rate"]}
BEST: Fields = {**LIVE, **{name: each for of in OPTIONS.values() for name, each in of.items()}}
# HARP's own gradient of the rates; also for methods whose rates do not learn.
NO_WINDOW: Fields = {field: value for field, value in BEST.items() if field != "prune.window"}
# Rates that start as LAMP's, and come down more slowly. On training images that no run had used
# they were better at 99 %, without the window (`fashion_best_starts`); at 99.9 % they were worse.
FROM_LAMP: Fields = {**BEST, "prune.strategy": "lamp", "prune.anneal": 0.8}
OTHERS: dict[str, Fields] = {
    "HYDRA, LAMP, best": {
        **NO_WINDOW,
        "prune.live": False,
        "prune.method": "score",
        "prune.strategy": "lamp",
    },
    "HYDRA, LAMP, best, live": {
        **NO_WINDOW,
        "prune.method": "score",
        "prune.strategy": "lamp",
    },
    "Flying Bird": {"prune.method": "flying_bird", "prune.strategy": "erk", **FINETUNING},
    "Twin-Rep": {"prune.method": "twin_rep", "prune.strategy": "global", **FINETUNING},
}
TARGETS = (0.01, 0.001)
OFTEN = (
    "HARP, best",
    "HARP, best, from LAMP",
    "HARP, best, without window",
    "HYDRA, LAMP, best",
    "HYDRA, LAMP, best, live",
    "Twin-Rep",
)

MATRIX = Matrix(
    base=fashion.MATRIX.base,
    fields=fashion.MATRIX.fields,
    methods={
        "HARP, live": LIVE,
        "HARP, best": BEST,
        "HARP, best, from LAMP": FROM_LAMP,
        "HARP, best, without window": NO_WINDOW,
        **OTHERS,
    },
    dense={"dense, as many epochs": {"pretrain.epochs": 8 + 5 + 8}},
    targets=TARGETS,
    seeds=(0, 1, 2),
    more_seeds=dict.fromkeys(OFTEN, (3, 4)),
)
