"""The pruning methods by name: what each adds to the loop that all stages share.

| `prune.method` | scores                 | rates           | prune stage                          |
|----------------|------------------------|-----------------|--------------------------------------|
| harp           | learned                | learned         | masks train                          |
| score (HYDRA)  | learned                | of the strategy | masks train                          |
| rate           | of the weights         | learned         | masks train                          |
| admm           | of the trained weights | of the strategy | weights train, pulled to sparse ones |
| magnitude      | of the weights         | of the strategy | one shot                             |
| random         | drawn                  | of the strategy | one shot                             |

What is trained is in `training.stages`. All end in scores and rates, from which finetuning,
evaluation and the report go on alike.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax

from harp_jax.config.sections import Config, minimum_rate
from harp_jax.methods.admm import UNMASKED, admm
from harp_jax.methods.chance import random_scores
from harp_jax.methods.sharpness import ascend
from harp_jax.pruning.compression import add_compression_gradient
from harp_jax.pruning.layers import rates_of
from harp_jax.pruning.masking import PLAIN, Masking, live
from harp_jax.pruning.schemes import Scheme
from harp_jax.training import optim, stages
from harp_jax.training.step import Ascend
from harp_jax.types import Variables


class Context(NamedTuple):
    """What a method may ask for.

    Attributes:
        config: A valid configuration.
        scheme: How the network is pruned.
        steps_per_epoch: Updates in an epoch.
    """

    config: Config
    scheme: Scheme
    steps_per_epoch: int


def _compression(context: Context, _: Variables) -> dict[str, optax.GradientTransformation]:
    prune, cost = context.config.prune, context.scheme.cost
    link = add_compression_gradient(
        cost,
        cost.target_share(prune.target),
        minimum_rate(context.config),
        prune.gamma0,
        context.steps_per_epoch,
    )
    return {"compression_gradient": link}


def _masks(context: Context) -> Masking:
    return live(context.scheme.units) if context.config.prune.live else PLAIN


def _admm(context: Context, variables: Variables) -> dict[str, optax.GradientTransformation]:
    settings = context.config.admm
    rates = {("params", *path): rate for path, rate in rates_of(variables).items()}
    steps = settings.every * context.steps_per_epoch
    return {"penalty_gradient": admm(rates, settings.rho, settings.growth, steps)}


class Method(NamedTuple):
    """See the table above.

    Attributes:
        start: (variables with the scores of the weights, context) -> variables to start from.
        links: (context, variables to start from) -> further links of `optim.optimizer`, by name.
        masking: (context) -> how masks enter its steps.
    """

    start: Callable[[dict[str, Any], Context], dict[str, Any]] = lambda variables, _: variables
    links: Callable[[Context, Variables], dict[str, optax.GradientTransformation]] = lambda *_: {}
    masking: Callable[[Context], Masking] = lambda _: PLAIN


METHODS: dict[str, Method] = {
    "harp": Method(links=_compression, masking=_masks),
    "score": Method(masking=_masks),
    "rate": Method(links=_compression, masking=_masks),
    "admm": Method(links=_admm, masking=lambda _: UNMASKED),
    "magnitude": Method(),
    "random": Method(
        start=lambda variables, context: random_scores(
            variables, context.scheme.architecture, context.config.seed
        )
    ),
}


def optimizer(
    context: Context, mode: str, schedule: optax.Schedule, variables: Variables
) -> optax.GradientTransformation:
    """The optimiser of a stage.

    Args:
        context: Of the run.
        mode: A key of `stages.TRAINS`.
        schedule: Learning rate from the number of updates.
        variables: Those that the stage starts from.

    Returns:
        A transformation over what the mode trains.
    """
    settings = context.config.optimizer
    links = METHODS[mode].links(context, variables) if mode in METHODS else {}
    masks_train = bool({"scores", "rates"} & stages.TRAINS[mode])
    return optim.optimizer(
        schedule,
        settings.momentum,
        settings.weight_decay,
        clip_norm=context.config.prune.clip_norm or None if masks_train else None,
        share=context.scheme.share if masks_train else None,
        **links,
    )


def masking(context: Context, mode: str) -> Masking:
    """How masks enter the steps of a mode, a key of `stages.TRAINS`."""
    return METHODS[mode].masking(context) if mode in METHODS else PLAIN


def score_ascent(context: Context, mode: str) -> Ascend | None:
    """Where the gradient of a step is taken (see `step.make_train_step`).

    Args:
        context: Of the run.
        mode: A key of `stages.TRAINS`.

    Returns:
        S2AP's ascent, the same for layers that share channels; None without `prune.sharpness` or
        where scores do not learn.
    """
    sharpness = context.config.prune.sharpness
    share: Any = context.scheme.share
    if not sharpness or "scores" not in stages.TRAINS[mode]:
        return None

    def perturbed(scores: Any, gradient: Any) -> Any:
        if share is not None:
            gradient = share.update({"scores": gradient}, optax.EmptyState())[0]["scores"]
        return ascend(scores, gradient, sharpness)

    return perturbed
