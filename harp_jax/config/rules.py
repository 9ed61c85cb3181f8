"""The table of fields: the type and the range of each, and the relations between them.

A rule looks at one value and imports nothing, so it can be asked before JAX starts. What needs a
class (a loss, a method, an attack) is checked where that is built, in `sections`; what needs the
data, when that is loaded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from harp_jax import settings
from harp_jax.attacks.base import norm_of
from harp_jax.config.defaults import (
    ABOVE_TARGET,
    ALL_STAGES,
    CHECKPOINT,
    JSON,
    RECIPES,
    SELECTION_SPLITS,
    SHARED_BY_METHODS,
    SPARSE,
)
from harp_jax.config.kinds import Choice, Flag, Number, Rule, Several, Text, Whole
from harp_jax.losses import LOSSES
from harp_jax.methods import METHODS
from harp_jax.models import COMPUTE_DTYPES, MODELS
from harp_jax.models.blocks import MOST_WIDTH
from harp_jax.parallel import PRECISIONS
from harp_jax.pruning.scores import GRANULARITIES
from harp_jax.pruning.strategies import STRATEGIES
from harp_jax.settings import LARGEST, MOST
from harp_jax.training.optim import SCHEDULES
from harp_jax.training.stages import STAGES

_LOSS, _OWN_LOSS = Choice(LOSSES, own=True), Choice(LOSSES, own=True, optional=True)
_EPOCHS, _RATE = Whole(1, 10**6), Number(open="low")
_DECAY = Number(0.0, 1.0, open="high")
_COUNT = Whole(1, optional=True)
_SOURCE = Text("paths of checkpoints or workdirs, or ''")

RULES: dict[str, Rule] = {
    "seed": Whole(0, 2**32 - 1),
    "stages": Several(Choice(ALL_STAGES)),
    "model": Choice(MODELS, own=True),
    "width": Number(0.0, MOST_WIDTH, open="low"),
    "compute_dtype": Choice(COMPUTE_DTYPES),
    "matmul_precision": Choice(PRECISIONS),
    "sparse": Choice(SPARSE),
    "devices": _COUNT,
    "compilation_cache": Text("folders, or '' for none", optional=True),
    "batch_size": Whole(1),
    "loss": _LOSS,
    "checkpoint_every_steps": Whole(0),
    "checkpoint_minutes": Number(),
    "keep_checkpoints": Whole(1, 1000),
    "data.name": Text("names of image sets", empty=False),
    "data.directory": Text("folders, or unset", optional=True),
    "data.validation_examples": Whole(0),
    "data.select_on": Choice(SELECTION_SPLITS),
    "data.train_examples": _COUNT,
    "data.test_examples": _COUNT,
    "data.pad_to": Whole(1, 1024, optional=True),
    "data.image_size": Whole(1, 4096, optional=True),
    "data.grey": Flag(),
    "data.workers": Whole(0, 256),
    "data.crop_padding": Whole(0, 256),
    "data.flip": Flag(),
    "data.mean": Several(Number(0.0, 1.0, pixels=True), empty=True),
    "data.std": Several(Number(0.001, 1.0, pixels=True), empty=True),
    "attack.epsilon": Number(0.0, 1.0, pixels=True),
    "attack.step_size": Number(0.0, 1.0, open="low", pixels=True),
    "attack.steps": Whole(1, 10_000),
    "optimizer.momentum": Number(0.0, 1.0, open="high"),
    "optimizer.weight_decay": Number(),
    "optimizer.schedule": Choice(SCHEDULES),
    "pretrain.epochs": _EPOCHS,
    "pretrain.learning_rate": _RATE,
    "pretrain.loss": _OWN_LOSS,
    "pretrain.average": _DECAY,
    "prune.epochs": _EPOCHS,
    "prune.learning_rate": _RATE,
    "prune.loss": _OWN_LOSS,
    "prune.source": _SOURCE,
    "prune.method": Choice(METHODS, own=True),
    "prune.recipe": Choice(RECIPES),
    "prune.granularity": Choice(GRANULARITIES),
    "prune.target": Number(0.0, 1.0, open="low"),
    "prune.alpha": Number(0.0, 1.0, open="both"),
    "prune.strategy": Choice(STRATEGIES, prefixes=(JSON, CHECKPOINT)),
    "prune.initial_rate": Number(0.0, 1.0, open="low"),
    "prune.gamma0": Number(open="low"),
    "prune.clip_norm": Number(),
    "prune.sharpness": Number(),
    "prune.live": Flag(),
    "prune.live_after": Number(0.0, 1.0),
    "prune.window": Number(0.0, 1.0),
    "prune.joint": Flag(),
    "prune.anneal": Number(0.0, 1.0),
    "prune.fill": Flag(),
    "prune.above_target": Choice(ABOVE_TARGET),
    "finetune.epochs": _EPOCHS,
    "finetune.learning_rate": _RATE,
    "finetune.loss": _OWN_LOSS,
    "finetune.source": _SOURCE,
    "finetune.regrow": Number(0.0, 1.0, open="high"),
    "finetune.average": _DECAY,
    "evaluate.batch_size": Whole(1, 2**20),
    "evaluate.matmul_precision": Choice(PRECISIONS),
    "evaluate.run": Several(Text("names of attacks"), empty=True),
    "evaluate.stages": Several(Choice(STAGES)),
    "evaluate.curve": Flag(),
}
# The settings of losses and methods, by type; their classes check the ranges.
_BY_TYPE: dict[type, Rule] = {
    int: Whole(-MOST),
    float: Number(-LARGEST),
    bool: Flag(),
    str: Text("names"),
}
SETTINGS: dict[str, Rule] = {
    f"{name}.{field}": _BY_TYPE[type(default)]
    for name, kind in (LOSSES | METHODS).items()
    for field, default in settings.defaults(kind).items()
    if field not in SHARED_BY_METHODS
}
# Sections with any content, which is checked where it is used.
OPEN = ("own", "evaluate.attacks")


class Relation(NamedTuple):
    """Condition on one field that depends on others.

    Attributes:
        field: The field that is named.
        holds: Function of the configuration, whose fields all follow `RULES`.
        allowed: The allowed values, in words; {config.FIELD} stands for the value of a field.
    """

    field: str
    holds: Callable[[Any], bool]
    allowed: str


RELATIONS = (
    Relation(
        "data.validation_examples",
        lambda config: config.data.select_on == "test" or config.data.validation_examples >= 1,
        "whole numbers >= 1, or 0 with data.select_on='test'",
    ),
    Relation(
        "data.crop_padding",
        lambda config: config.data.image_size is None or config.data.crop_padding == 0,
        "0 with data.image_size, which crops",
    ),
    Relation(
        "data.pad_to",
        lambda config: config.data.image_size is None or config.data.pad_to is None,
        "unset with data.image_size, which crops",
    ),
    Relation(
        "data.std",
        lambda config: len(config.data.std) == len(config.data.mean),
        "as many numbers as in data.mean={config.data.mean}",
    ),
    Relation(
        "prune.granularity",
        lambda config: not config.prune.live or config.prune.granularity == "weight",
        "weight with prune.live",
    ),
    Relation(
        "prune.live_after",
        lambda config: config.prune.live or config.prune.live_after == 0,
        "0 without prune.live",
    ),
    Relation(
        "finetune.regrow",
        lambda config: not config.finetune.regrow or config.prune.granularity == "weight",
        "0 with prune.granularity='channel', whose masks are of channels",
    ),
)


def wrong_length(attack: Any) -> tuple[str, Any, str] | None:
    """Finds a length of an L_inf attack that is not in units of [0, 1].

    Args:
        attack: The attack, as built.

    Returns:
        Its field, its value and what is allowed; None if there is none.
    """
    if norm_of(attack) != "linf":
        return None
    for name in ("epsilon", "step_size"):
        value: Any = getattr(attack, name, None)
        if settings.is_number(value) and value > 1:
            return name, value, RULES[f"attack.{name}"].allowed(value)
    return None
