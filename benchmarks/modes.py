"""The modes and sizes of `benchmarks.accelerator`; imports nothing of either side."""

from typing import NamedTuple

# By name: type of the features and precision of float32 products. What a device does by default is
# TF32 on GPUs that have it, one pass of bfloat16 on TPUs, and float32 on CPUs.
MODES = {
    "float32": ("float32", "highest"),
    "tf32": ("float32", "default"),
    "bfloat16": ("bfloat16", "default"),
}


class Sizes(NamedTuple):
    """Sizes of what is measured.

    Attributes:
        networks: Networks whose steps are measured.
        batches: Images in a step; the first is that of all other parts.
        attack_steps: Steps of PGD in a training step.
        product: Rows and columns of the products that measure the device's peak.
        pruned: Modes beside 'tf32' of which the pruning steps are measured.
        golden: Networks whose logits are compared with golden numbers.
        golden_losses: Losses whose values and gradients are compared likewise.
        attacked: Network that AutoAttack attacks.
        attacks: Modes and numbers of images of AutoAttack, in the order in which they are run.
        attack_batch: Images that it attacks at once.
        attack_epsilon: Its radius on the [0, 1] scale. A dry run's breaks nothing, so that every
            attack has images to attack.
        attack_settings: Settings of AutoAttack apart from the radius; none are the published ones.
        training_steps: Steps that the attacked network trains.
        piped: Networks whose input pipeline is measured.
        piped_steps: Steps with it.
        compiled: Networks that PyTorch compiles too.
    """

    networks: tuple[str, ...] = ("resnet18", "vgg16_bn", "wrn_28_4")
    batches: tuple[int, ...] = (128, 512)
    attack_steps: int = 10
    product: int = 8192
    pruned: tuple[str, ...] = ("float32", "bfloat16")
    golden: tuple[str, ...] = ("resnet18", "vgg16_bn", "wrn_28_4")
    golden_losses: tuple[str, ...] = ("natural", "pgd", "trades", "mart")
    attacked: str = "resnet18"
    attacks: tuple[tuple[str, int], ...] = (("tf32", 256), ("float32", 256), ("tf32", 1000))
    attack_batch: int = 256
    attack_epsilon: float = 0.031
    attack_settings: tuple[tuple[str, int], ...] = ()
    training_steps: int = 150
    piped: tuple[str, ...] = ("cnn", "resnet18")
    piped_steps: int = 48
    compiled: tuple[str, ...] = ("resnet18",)


SMALL = Sizes(
    networks=("cnn",),
    batches=(8,),
    attack_steps=2,
    product=256,
    pruned=(),
    golden=(),
    golden_losses=("pgd",),
    attacked="cnn",
    attacks=(("float32", 16),),
    attack_batch=16,
    attack_epsilon=1e-5,
    attack_settings=(("steps", 3), ("targets", 2), ("queries", 5)),
    training_steps=80,
    piped=("cnn",),
    piped_steps=8,
    compiled=(),
)


def read_sizes(small: bool) -> Sizes:
    """Returns the sizes of a dry run, or those of a measurement."""
    return SMALL if small else Sizes()
