"""The pruning methods by name. Each is a file with everything that it adds to the common stages.

| `prune.method`   | scores                 | rates           | prune stage                        |
|------------------|------------------------|-----------------|------------------------------------|
| harp             | learned                | learned         | masks train                        |
| score (HYDRA)    | learned                | of the strategy | masks train                        |
| rate             | of the weights         | learned         | masks train                        |
| admm             | of the trained weights | of the strategy | weights train, pulled to sparse    |
| flying_bird      | of the trained weights | of the strategy | weights train, masks regrow        |
| flying_bird_plus | of the trained weights | of the strategy | so, with more or fewer in between  |
| twin_rep         | of the trained weights | of the strategy | weights train as products of two   |
| magnitude        | of the weights         | of the strategy | one shot                           |
| random           | drawn                  | of the strategy | one shot                           |

Every method ends in scores and rates, which finetuning, evaluation and the report use. `Live`
(`prune.live`), `Window` (`prune.window`), `Joint` (`prune.joint`), `Anneal` (`prune.anneal`) and
`Sharpness` (`prune.sharpness`) wrap a method that learns masks.

A new method is a file with a subclass of `Method`, and a row here; or a class of your own, named
"module:Class" in `config.prune.method`. Methods know nothing of configurations, files or loops.
`losses` and the rooms above it may import this one.
"""

from harp_jax.methods.admm import Admm
from harp_jax.methods.anneal import Anneal
from harp_jax.methods.base import (
    PLAIN,
    Accuracies,
    AfterEpoch,
    Ascend,
    Links,
    Masking,
    Method,
    Probe,
    Setting,
    Trained,
)
from harp_jax.methods.flying_bird import FlyingBird
from harp_jax.methods.flying_bird_plus import FlyingBirdPlus
from harp_jax.methods.harp import Harp, Rate
from harp_jax.methods.hydra import Hydra
from harp_jax.methods.joint import Joint
from harp_jax.methods.live import Live
from harp_jax.methods.magnitude import Magnitude
from harp_jax.methods.random import Random
from harp_jax.methods.regrowth import Timing, regrowing
from harp_jax.methods.sharpness import Sharpness
from harp_jax.methods.twin_rep import TwinRep
from harp_jax.methods.window import Window

METHODS: dict[str, type[Method]] = {
    "harp": Harp,
    "score": Hydra,
    "rate": Rate,
    "admm": Admm,
    "magnitude": Magnitude,
    "random": Random,
    "flying_bird": FlyingBird,
    "flying_bird_plus": FlyingBirdPlus,
    "twin_rep": TwinRep,
}

__all__ = [
    "METHODS",
    "PLAIN",
    "Accuracies",
    "AfterEpoch",
    "Anneal",
    "Ascend",
    "Joint",
    "Links",
    "Live",
    "Masking",
    "Method",
    "Probe",
    "Setting",
    "Sharpness",
    "Timing",
    "Trained",
    "Window",
    "regrowing",
]
