"""Whole channels at a quarter of the FLOPs, on Fashion-MNIST: learned rates and uniform ones.

Both methods learn which channels to keep, train the weights at the same time, come down to the
budget over half of the stage and finetune with the same extras as in `fashion_best`. They differ in
the rates of the layers: HARP learns them, the other gives half of the channels to each.
"""

from experiments.matrices.fashion_best import BEST
from experiments.matrices.fashion_best import MATRIX as METHODS
from experiments.matrix import Fields, Matrix

CHANNELS: Fields = {
    **{name: value for name, value in BEST.items() if name != "prune.live"},  # of weights only
    "prune.granularity": "channel",
    "prune.initial_rate": 0.9,
}
UNIFORM: Fields = {name: value for name, value in CHANNELS.items() if name != "prune.window"}

MATRIX = Matrix(
    base=METHODS.base,
    fields=METHODS.fields,
    methods={
        "HARP, channels, best": CHANNELS,
        "uniform channels, best": {**UNIFORM, "prune.method": "score"},
        "HARP, channels": {"prune.granularity": "channel", "prune.initial_rate": 0.9},
    },
    targets=(0.5,),  # half of the channels: a quarter of the FLOPs
    seeds=(0, 1, 2),
)
