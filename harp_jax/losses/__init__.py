"""Training losses: functions on logits, and classes that say how a stage trains with them.

| name    | attack of the training step                         | passes, in order          |
|---------|-----------------------------------------------------|---------------------------|
| natural | none                                                | clean                     |
| pgd     | PGD as configured                                   | adversarial               |
| fgsm    | one step of 1.25 epsilon from a random start        | adversarial               |
| trades  | ascends the divergence, from close to the image     | clean, adversarial, clean |
| mart    | ascends the cross-entropy, from close to the image  | clean, adversarial        |
| free    | shares its passes with the updates                  | adversarial, every replay |

Passes are in training mode; each updates BatchNorm's running statistics. A new loss is a file with
a subclass of `Loss`, and a row here; or a class of your own, named as "module:Class" in
`config.loss`. `checkpoint`, `evaluation` and the rooms above them may import this one.
"""

from harp_jax.losses._fgsm import FgsmTraining
from harp_jax.losses._free import Free
from harp_jax.losses._mart import Mart, mart
from harp_jax.losses._natural import Natural, natural
from harp_jax.losses._pgd import PgdTraining, pgd
from harp_jax.losses._trades import Trades, kl_divergence, trades
from harp_jax.losses.base import Forward, Loss

LOSSES: dict[str, type[Loss]] = {
    "natural": Natural,
    "pgd": PgdTraining,
    "fgsm": FgsmTraining,
    "trades": Trades,
    "mart": Mart,
    "free": Free,
}

__all__ = [
    "LOSSES",
    "FgsmTraining",
    "Forward",
    "Free",
    "Loss",
    "Mart",
    "Natural",
    "PgdTraining",
    "Trades",
    "kl_divergence",
    "mart",
    "natural",
    "pgd",
    "trades",
]
