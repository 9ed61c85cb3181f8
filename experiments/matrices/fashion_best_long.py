"""The methods of `fashion_best` from the same dense networks, with twice the epochs in all.

Prune 10 and finetune 24 epochs after the 8 of dense training, not 5 and 8: is what the methods have
in common at 99 % a lack of training?
"""

import dataclasses

from experiments.matrices.fashion_best import MATRIX as METHODS

EPOCHS = {"prune.epochs": 10, "finetune.epochs": 24}
NAMES = ("HARP, best", "HARP, best, from LAMP", "HYDRA, LAMP, best")

MATRIX = dataclasses.replace(
    METHODS,
    methods={f"{name}, longer": {**METHODS.methods[name], **EPOCHS} for name in NAMES},
    dense={"dense, as many epochs, longer": {"pretrain.epochs": 8 + sum(EPOCHS.values())}},
    more_seeds={},
)
