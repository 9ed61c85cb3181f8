"""Every setting of a run, with its default.

A file under `configs/` starts from `default()` and overrides fields. The defaults are the authors'
CIFAR-10 settings.
"""

from typing import Any, TypeAlias

from ml_collections import ConfigDict, config_dict

from harp_jax.losses import LOSSES
from harp_jax.methods import METHODS
from harp_jax.settings import defaults
from harp_jax.training.stages import STAGES

# A ConfigDict; its fields are made at run time, where `config.validate` checks them.
Config: TypeAlias = Any

ALL_STAGES = (*STAGES, "evaluate", "report")
ABOVE_TARGET = ("shift", "error")
JSON, CHECKPOINT = (
    "json:",
    "checkpoint:",
)  # strategies that are read: see run.initial_rates
SPARSE = ("auto", "off")
SELECTION_SPLITS = ("validation", "test")
# The values of fields by the recipe's name, see `recipes`; `paper` leaves all as they are.
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {
        "prune.live": True,
        "prune.window": 0.5,
        "prune.joint": True,
        "prune.anneal": 0.5,
        "prune.fill": True,
        "finetune.average": 0.98,
        "finetune.learning_rate": 0.1,
    },
}
SHARED_BY_METHODS = {"gamma0"}  # fields of methods that stand in config.prune
STEPS = ("epsilon", "step_size")


def default() -> Config:
    """Returns the configuration that every experiment overrides."""
    config: Config = ConfigDict()
    config.seed = 0  # with the config itself, all that a run depends on
    config.stages = ALL_STAGES  # which to run, always in this order; finished ones skipped
    config.model = "vgg16_bn"  # a name in harp_jax.models.MODELS
    config.width = 1.0  # multiplies the channels of its layers
    # Type of the network's features: float32 or bfloat16. All variables stay float32.
    config.compute_dtype = "float32"
    # Precision of float32 products on GPUs and TPUs, while training: default (the device's own, as
    # TF32 on GPUs, bfloat16 on TPUs), high (three passes of bfloat16 on TPUs) or highest (float32).
    # CPUs always compute in float32.
    config.matmul_precision = "default"
    # auto: what is pruned is skipped where that is faster, in float32. On CPUs with a C++ compiler
    # networks with fixed masks (finetuned and evaluated ones) compute with their kept weights alone
    # in some layers; on GPUs and TPUs evaluated ones compute without units that do nothing. off:
    # never.
    config.sparse = "auto"
    config.devices = config_dict.placeholder(int)  # all accelerators, or all CPU cores, if unset
    config.compilation_cache = "~/.cache/harp_jax"  # compiled programs, kept over runs; '' for none

    config.data = ConfigDict()
    config.data.name = "cifar10"  # or digits, mnist5k, npz:FILE, ...: see harp_jax.data.load
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
    config.data.grey = False  # decode the images of folder: and parquet: to one channel, not three
    config.data.workers = 0  # processes that decode a streamed set; 0: a thread of this one does
    config.data.crop_padding = 4  # random crops after zero-padding by this many pixels; 0: none
    config.data.flip = True  # random horizontal flips
    # The network subtracts and divides by these, channel by channel; epsilon keeps its scale.
    config.data.mean = ()  # of [0, 1] pixels; (): none
    config.data.std = ()

    config.batch_size = 128  # over all devices of all processes
    # Of training: natural, pgd, fgsm, trades, mart, free, module:Class; a stage may have its own.
    config.loss = "pgd"
    # The settings of a loss or method of its own, in a section of its name: trades.beta, mart.beta,
    # free.replays, admm.rho, flying_bird.drop, twin_rep.dense, ... Their classes say what they are.
    config.update(_sections())
    # Those of losses and methods of a user's own, by the class: {"MyLoss": {"beta": 2.0}}.
    # Sections that this run does not read are refused: they may be misspelt.
    config.own = ConfigDict()
    # PGD in the L_inf ball: of validation and, but for its start and for what it ascends, of
    # training (see harp_jax.losses).
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
    # Decay of an exponential moving average of the weights, once a step (less in the first steps).
    # The averaged network is validated, chosen and handed on; training goes on with the plain one.
    # 0: no average.
    config.pretrain.average = 0.0

    config.prune = ConfigDict()
    config.prune.epochs = 20  # magnitude and random have none
    config.prune.learning_rate = 0.1  # admm trains weights and wants 0.01
    config.prune.loss = config_dict.placeholder(str)
    config.prune.source = ""  # checkpoint of a dense network; '': this run's pretrain stage
    # What learns: harp (scores, rates), score (HYDRA), rate; the weights: admm (Robust-ADMM),
    # flying_bird, flying_bird_plus, twin_rep; or what chooses in one shot: magnitude, random. Or
    # module:Class.
    config.prune.method = "harp"
    # A set of the options below, of weight averaging and of finetuning by one name: `best` was
    # chosen on validation data and on images that no run had used, with one or two seeds. A field
    # with another value than its default keeps it.
    config.prune.recipe = "paper"
    # What is kept or removed: single weights, or whole channels that a layer reads ('channel'). The
    # budget of 'weight' is that share of the weights, that of 'channel' the FLOPs of a network with
    # that share of the channels everywhere, about its square.
    config.prune.granularity = "weight"
    config.prune.target = 0.01  # share of the prunable weights, or of the channels, to keep
    config.prune.alpha = 0.1  # no layer's rate goes below alpha * target
    # The rates to start from: uniform, erk, lamp or global (both from the pre-trained weights),
    # json:PATH (a strategy.json) or checkpoint:PATH (of a pruned network).
    config.prune.strategy = "uniform"
    # Overall rate that the rules spread, or the target if that is higher. Where rates do not learn
    # they spread the target.
    config.prune.initial_rate = 0.1
    config.prune.gamma0 = 0.01  # weight of the compression loss in epoch 0, and its growth
    # A filter whose weights are all masked has no variance for BatchNorm to divide by: now and then
    # its scores get a gradient hundreds of times the usual one, which can push a rate to 1 for
    # good. Where masks learn, gradients longer than this are scaled down to it; 0: none are, as the
    # authors.
    config.prune.clip_norm = 1.0
    # S2AP: scores learn from the gradient at scores that are moved up the loss by this share of
    # their layer's norm, for one more pass forward and back a step; 0: at the scores themselves.
    config.prune.sharpness = 0.0
    # Spend the budget on live connections only. At high sparsity much of it goes to weights that
    # read what nothing feeds any more. True removes such units for good, and rates learn from the
    # weights that they would add (see harp_jax.pruning.live); False: as the authors.
    config.prune.live = False
    # Share of the prune stage before which no such unit is removed, since it may come back.
    config.prune.live_after = 0.0
    # Rates learn from the weights around the threshold of their layer's mask, which a change of the
    # rate lets in or out: those whose rank is within this share of the kept number (see
    # harp_jax.methods.window). 0: from all weights of the layer, as the authors.
    config.prune.window = 0.0
    # Train the weights together with the scores and rates, at the stage's learning rate. Kept
    # weights follow the loss, all decay (see harp_jax.methods.joint); False: as the authors.
    config.prune.joint = False
    # Share of the prune stage in which the target comes down geometrically: from the cost of the
    # first rates where rates learn; where they do not, every rate from 1. 0: as the authors.
    config.prune.anneal = 0.0
    # If the network ends below the target, raise rates until it keeps as much as is allowed: the
    # weights with the next-highest scores come back. False: as the authors.
    config.prune.fill = False
    config.prune.above_target = "shift"  # if it ends above the target: shift rates, or error

    config.finetune = ConfigDict()
    config.finetune.epochs = 100
    config.finetune.learning_rate = 0.01
    config.finetune.loss = config_dict.placeholder(str)
    config.finetune.source = ""  # checkpoint of a pruned network; '': this run's prune stage
    # Share of each layer's kept weights, the smallest, that give their places to the masked ones of
    # largest gradient, once an epoch until three quarters of the stage; 0: masks stay. Such a stage
    # computes densely, whatever `sparse` says.
    config.finetune.regrow = 0.0
    config.finetune.average = 0.0  # as pretrain.average

    # Checkpoints are saved at the end of each epoch, and inside epochs:
    config.checkpoint_every_steps = 0  # after so many steps; 0: never
    config.checkpoint_minutes = 10.0  # after so many minutes since the one before; 0: never
    config.keep_checkpoints = 2  # to resume from; if the newest is damaged, the one before serves

    config.evaluate = ConfigDict()
    config.evaluate.batch_size = 512
    # As matmul_precision, while measuring on test images. What rounding hides from an attack looks
    # like robustness, so it is float32 until it has been measured that less is enough.
    config.evaluate.matmul_precision = "highest"
    # Which of the attacks, in this order. The cross-entropy of large logits has zero gradients; the
    # margin, which cw20 ascends, does not.
    config.evaluate.run = ("fgsm", "pgd10", "cw20", "pgd20")
    config.evaluate.stages = STAGES  # whose networks
    # Also: accuracy at 0 to 2 epsilon, under APGD with 25 steps.
    config.evaluate.curve = False
    config.evaluate.attacks = _attacks(config.attack)
    config.lock()  # a misspelt field is an error, not a new one
    config.evaluate.attacks.unlock()  # in a file: any attacks, by any names
    config.own.unlock()
    return config


def _sections() -> dict[str, dict[str, Any]]:
    """Returns the defaults of the settings that only one loss or method has, by its name."""
    own = {name: defaults(kind) for name, kind in (LOSSES | METHODS).items()}
    return {
        name: settings
        for name, settings in own.items()
        if settings and not settings.keys() & SHARED_BY_METHODS
    }


def _attacks(training: Config) -> Config:
    """Returns the attacks of the evaluation, by name, with the radius and steps of training.

    Setting the epsilon or step_size of training changes those of the attacks here, not the other
    way round.
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
