"""Every setting of a run, with its default, and the checks that come before anything compiles.

A file under `configs/` starts from `default()` and overrides fields. The defaults are the authors'
CIFAR-10 settings.
"""

import math
from typing import Any

from ml_collections import ConfigDict, config_dict

from harp_jax.config.sections import (
    Config,
    attacks_to_run,
    loss_name,
    make_attack,
    require,
    validation_attack,
)
from harp_jax.losses.objectives import FREE, LOSSES
from harp_jax.models import COMPUTE_DTYPES, MODELS
from harp_jax.pruning.scores import GRANULARITIES
from harp_jax.pruning.strategies import STRATEGIES
from harp_jax.training.optim import SCHEDULES
from harp_jax.training.stages import PRUNE_METHODS, STAGES, TRAINS

ALL_STAGES = (*STAGES, "evaluate", "report")
ABOVE_TARGET = ("shift", "error")
JSON, CHECKPOINT = (
    "json:",
    "checkpoint:",
)  # strategies that are read: see run.initial_rates
SELECTION_SPLITS = ("validation", "test")
STEPS = ("epsilon", "step_size")


def default() -> Config:
    """The configuration that every experiment overrides."""
    config: Config = ConfigDict()
    config.seed = 0  # with the config itself, all that a run depends on
    config.stages = ALL_STAGES  # which to run, always in this order; finished ones skipped
    config.model = "vgg16_bn"  # a name in harp_jax.models.MODELS
    # Type of the network's features: float32 or bfloat16. All variables stay float32.
    config.compute_dtype = "float32"
    config.devices = config_dict.placeholder(int)  # all accelerators, or all CPU cores, if unset
    config.compilation_cache = "~/.cache/harp_jax"  # compiled programs, kept over runs; '' for none

    config.data = ConfigDict()
    config.data.name = "cifar10"  # mnist5k, digits, idx:FOLDER or a TFDS dataset
    config.data.directory = config_dict.placeholder(str)  # of TFDS; its own default if unset
    config.data.validation_examples = 1000  # carved from train by the seed; to choose on
    # Where the best epochs are chosen. 'test' is the authors' way, for comparison: the results then
    # look too good, and they and the report say so. It needs no validation_examples.
    config.data.select_on = "validation"
    config.data.train_examples = config_dict.placeholder(int)  # all that are left, if unset
    config.data.test_examples = config_dict.placeholder(int)  # the first of the test split, or all
    config.data.pad_to = config_dict.placeholder(int)  # zeros around images, up to this size
    # Side of the squares that a set is cut to while it is streamed from disk, for images that vary
    # in size or are too many for memory. Training sees random parts (8 to 100 % of the area, ratio
    # 3/4 to 4/3), everything else the middle. Unset: the set is decoded into memory as it is.
    config.data.image_size = config_dict.placeholder(int)
    config.data.workers = 0  # processes that decode a streamed set; 0: a thread of this one does
    config.data.crop_padding = 4  # random crops after zero-padding by this many pixels; 0: none
    config.data.flip = True  # random horizontal flips
    # The network subtracts and divides by these, channel by channel; epsilon keeps its scale.
    config.data.mean = ()  # of [0, 1] pixels; (): none
    config.data.std = ()

    config.batch_size = 128  # over all devices of all processes
    # Of training: natural, pgd, fgsm, trades, mart, free; a stage may have its own.
    config.loss = "pgd"
    config.trades = ConfigDict({"beta": 6.0})  # weight of the divergence
    config.mart = ConfigDict({"beta": 5.0})  # weight of the divergence
    config.free = ConfigDict({"replays": 4})  # updates with each batch; they do not divide epochs
    # Of prune.method='admm', as Ye et al.'s code has them: the penalty's first weight, and its
    # growth whenever what the weights are pulled to is renewed, after every so many epochs (theirs:
    # 20 of 200). In fewer or shorter epochs the weights come near to it with a larger rho only.
    config.admm = ConfigDict({"rho": 1e-3, "growth": 1.3, "every": 1})
    # PGD in the L_inf ball: of validation and, but for its start and for what it ascends, of
    # training (see harp_jax.losses.objectives).
    config.attack = ConfigDict()
    config.attack.epsilon = 0.031  # radius on the [0, 1] pixel scale
    config.attack.step_size = 0.0078
    config.attack.steps = 10

    config.optimizer = ConfigDict()  # SGD
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 5e-4  # on everything that trains, scores and rates included
    config.optimizer.schedule = "cosine"  # of the learning rate over a stage: cosine, step

    config.pretrain = ConfigDict()
    config.pretrain.epochs = 100
    config.pretrain.learning_rate = 0.1
    config.pretrain.loss = config_dict.placeholder(str)  # of this stage; config.loss if unset

    config.prune = ConfigDict()
    config.prune.epochs = 20  # magnitude and random have none
    config.prune.learning_rate = 0.1  # admm trains weights and wants 0.01
    config.prune.loss = config_dict.placeholder(str)
    config.prune.source = ""  # checkpoint of a dense network; '': this run's pretrain stage
    # What learns: harp (scores, rates), score (HYDRA), rate, admm (the weights: Robust-ADMM); or
    # what chooses in one shot: magnitude, random.
    config.prune.method = "harp"
    # What is kept or removed: single weights, or whole channels that a layer reads ('channel'). The
    # budget of 'weight' is that share of the weights, that of 'channel' the FLOPs of a network with
    # that share of the channels everywhere, about its square.
    config.prune.granularity = "weight"
    config.prune.target = 0.01  # share of the prunable weights, or of the channels, to keep
    config.prune.alpha = 0.1  # no layer's rate goes below alpha * target
    # The rates to start from: uniform, erk, lamp or global (both from the pre-trained weights),
    # json:PATH (a strategy.json) or checkpoint:PATH (of a pruned network).
    config.prune.strategy = "uniform"
    # Overall rate that the rules spread; where rates do not learn they spread the target.
    config.prune.initial_rate = 0.1
    config.prune.gamma0 = 0.01  # weight of the compression loss in epoch 0, and its growth
    # A filter whose weights are all masked has no variance for BatchNorm to divide by: now and then
    # its scores get a gradient hundreds of times the usual one, which can push a rate to 1 for
    # good. Gradients longer than this are scaled down to it; 0: none are, as the authors.
    config.prune.clip_norm = 1.0
    # S2AP: scores learn from the gradient at scores that are moved up the loss by this share of
    # their layer's norm, for one more pass forward and back a step; 0: at the scores themselves.
    config.prune.sharpness = 0.0
    # Spend the budget on live connections only. At high sparsity much of it goes to weights that
    # read what nothing feeds any more. True removes such units for good, and rates learn from the
    # weights that they would add (see harp_jax.pruning.masking); False: as the authors.
    config.prune.live = False
    config.prune.above_target = "shift"  # if it ends above the target: shift rates, or error

    config.finetune = ConfigDict()
    config.finetune.epochs = 100
    config.finetune.learning_rate = 0.01
    config.finetune.loss = config_dict.placeholder(str)
    config.finetune.source = ""  # checkpoint of a pruned network; '': this run's prune stage

    config.checkpoint_every_steps = 0  # also inside epochs; 0: at the end of each epoch only

    config.evaluate = ConfigDict()
    config.evaluate.batch_size = 512
    config.evaluate.run = ("fgsm", "pgd10", "pgd20")  # which of the attacks, in this order
    config.evaluate.stages = STAGES  # whose networks
    # Also: accuracy at 0 to 2 epsilon, under APGD with 25 steps.
    config.evaluate.curve = False
    config.evaluate.attacks = _attacks(config.attack)
    config.lock()  # a misspelt field is an error, not a new one
    config.evaluate.attacks.unlock()  # in a file: any attacks, by any names
    return config


def _attacks(training: Config) -> Config:
    """Attacks to evaluate with, by name; epsilon and step_size follow those of training.

    One way only: what an attack of the evaluation is given stays with it.
    """

    def following(*names: str) -> dict[str, Any]:
        return {name: training.get_oneway_ref(name) for name in names}

    attacks = {
        "fgsm": {"type": "FGSM", **following("epsilon")},
        "pgd10": {"type": "PGD", **following(*STEPS), "steps": 10, "restarts": 1},
        "pgd20": {"type": "PGD", **following(*STEPS), "steps": 20, "restarts": 5},
        "pgd100": {"type": "PGD", **following(*STEPS), "steps": 100, "restarts": 1},
        "cw20": {"type": "CW", **following(*STEPS), "steps": 20, "restarts": 1},
        "apgd": {"type": "APGD", **following("epsilon"), "objective": "ce", "steps": 100},
        "apgdt": {
            "type": "APGD",
            **following("epsilon"),
            "objective": "dlr_targeted",
            "steps": 100,
        },
        "fab": {"type": "FAB", **following("epsilon"), "steps": 100},
        "square": {"type": "Square", **following("epsilon"), "queries": 5000},
        "autoattack": {"type": "AutoAttack", **following("epsilon"), "version": "standard"},
    }
    return ConfigDict({name: ConfigDict(settings) for name, settings in attacks.items()})


def validate(config: Config) -> None:
    """Checks every field that can be checked without loading data.

    Args:
        config: The configuration of a run.

    Raises:
        ConfigError: naming the first field that is wrong, its value and what is allowed.
    """
    choices = {
        "model": MODELS,
        "compute_dtype": COMPUTE_DTYPES,
        "loss": LOSSES,
        "optimizer.schedule": SCHEDULES,
        "prune.granularity": GRANULARITIES,
        "prune.method": PRUNE_METHODS,
        "prune.above_target": ABOVE_TARGET,
        "data.select_on": SELECTION_SPLITS,
    }
    choices |= {f"{stage}.loss": LOSSES for stage in STAGES if config[stage].loss is not None}
    for field, allowed in choices.items():
        value = _get(config, field)
        require(value in allowed, field, value, ", ".join(allowed))
    for field, allowed in (("stages", ALL_STAGES), ("evaluate.stages", STAGES)):
        stages = tuple(_get(config, field))
        require(len(stages) > 0, field, stages, ", ".join(allowed))
        for stage in stages:
            require(stage in allowed, field, stage, ", ".join(allowed))
    counts = [f"{stage}.epochs" for stage in STAGES]
    if config.data.select_on == "validation":
        counts.append("data.validation_examples")
    for field in (*counts, "batch_size", "evaluate.batch_size"):
        require(_get(config, field) >= 1, field, _get(config, field), "whole numbers >= 1")
    for stage in STAGES:
        field = f"{stage}.learning_rate"
        require(_get(config, field) > 0, field, _get(config, field), "numbers > 0")
    _validate_ranges(config)
    _validate_normalization(config)
    _validate_prune(config)
    _validate_losses(config)
    validation_attack(config)
    for name, settings in config.evaluate.attacks.items():
        make_attack(settings, f"evaluate.attacks.{name}")
    attacks_to_run(config)


def check_batches(config: Config, devices: int) -> None:
    """Checks that batches can be cut over the devices.

    Args:
        config: A valid configuration.
        devices: Number of devices of all processes.

    Raises:
        ConfigError: naming the batch size that is no multiple.
    """
    for field in ("batch_size", "evaluate.batch_size"):
        value = _get(config, field)
        require(value % devices == 0, field, value, f"multiples of the {devices} devices")


def _validate_ranges(config: Config) -> None:
    momentum = config.optimizer.momentum
    require(0 <= momentum < 1, "optimizer.momentum", momentum, "numbers in [0, 1)")
    not_negative = (
        "seed",
        "checkpoint_every_steps",
        "optimizer.weight_decay",
        "prune.clip_norm",
        "prune.sharpness",
        "data.crop_padding",
        "data.validation_examples",
        "data.workers",
    )
    require(config.seed < 2**32, "seed", config.seed, "whole numbers below 2**32")
    for field in not_negative:
        require(_get(config, field) >= 0, field, _get(config, field), "numbers >= 0")
    optional = ("train_examples", "test_examples", "pad_to", "image_size")
    for field in (*(f"data.{name}" for name in optional), "devices"):
        value = _get(config, field)
        require(value is None or value >= 1, field, value, "whole numbers >= 1, or unset")
    if config.data.image_size is not None:
        padding = config.data.crop_padding
        require(padding == 0, "data.crop_padding", padding, "0 with data.image_size, which crops")
        size = config.data.pad_to
        require(size is None, "data.pad_to", size, "unset with data.image_size, which crops")


def _validate_normalization(config: Config) -> None:
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    finite = [isinstance(x, int | float) and abs(x) < float("inf") for x in mean]
    require(all(finite), "data.mean", mean, "finite numbers, one a channel")
    require(len(std) == len(mean), "data.std", std, f"as many numbers as in data.mean={mean}")
    positive = [isinstance(x, int | float) and 0 < x < float("inf") for x in std]
    require(all(positive), "data.std", std, "numbers > 0")


def _validate_losses(config: Config) -> None:
    for name in ("trades", "mart"):
        require(config[name].beta > 0, f"{name}.beta", config[name].beta, "numbers > 0")
    require(config.free.replays >= 1, "free.replays", config.free.replays, "whole numbers >= 1")
    epsilon = config.attack.epsilon
    for name in {"fgsm", FREE} & {loss_name(config, stage) for stage in STAGES}:
        require(epsilon > 0, "attack.epsilon", epsilon, f"numbers > 0 with the loss {name!r}")


def _validate_prune(config: Config) -> None:
    prune = config.prune
    is_read = prune.strategy.startswith((JSON, CHECKPOINT))
    allowed = f"{', '.join(STRATEGIES)}, {JSON}PATH, {CHECKPOINT}PATH"
    require(is_read or prune.strategy in STRATEGIES, "prune.strategy", prune.strategy, allowed)
    require(0 < prune.target <= 1, "prune.target", prune.target, "numbers in (0, 1]")
    require(0 < prune.alpha < 1, "prune.alpha", prune.alpha, "numbers in (0, 1)")
    require(prune.gamma0 > 0, "prune.gamma0", prune.gamma0, "numbers > 0")
    _validate_method(config)
    require(
        "rates" not in TRAINS[prune.method] or prune.target <= prune.initial_rate <= 1,
        "prune.initial_rate",
        prune.initial_rate,
        f"numbers from prune.target ({prune.target:g}) to 1",
    )


def _validate_method(config: Config) -> None:
    prune, admm = config.prune, config.admm
    learns_scores = "scores" in TRAINS[prune.method]
    allowed = f"0 with the method {prune.method!r}, whose scores do not learn"
    require(prune.sharpness == 0 or learns_scores, "prune.sharpness", prune.sharpness, allowed)
    if prune.sharpness:
        name = loss_name(config, "prune")
        require(name != FREE, "prune.loss", name, "other losses with prune.sharpness > 0")
    single = not prune.live or prune.granularity == "weight"
    require(single, "prune.granularity", prune.granularity, "weight with prune.live")
    masks_train = bool({"scores", "rates"} & TRAINS[prune.method])
    allowed = f"False with the method {prune.method!r}, whose masks do not learn"
    require(not prune.live or masks_train, "prune.live", prune.live, allowed)
    weights = prune.method != "admm" or prune.granularity == "weight"
    require(weights, "prune.granularity", prune.granularity, "weight with the method 'admm'")
    require(admm.rho > 0, "admm.rho", admm.rho, "numbers > 0")
    require(admm.growth >= 1, "admm.growth", admm.growth, "numbers >= 1")
    require(admm.every >= 1, "admm.every", admm.every, "whole numbers >= 1")
    if prune.method == "admm":
        # Gradient descent follows a penalty of curvature rho only up to about 1 / learning rate.
        rounds = (prune.epochs - 1) // admm.every
        last = math.log(admm.rho * prune.learning_rate) + rounds * math.log(admm.growth)
        allowed = f"values with rho * growth**{rounds} * prune.learning_rate <= 1"
        require(last <= 0, "admm", dict(admm), allowed)


def _get(config: Config, field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value[part]
    return value
