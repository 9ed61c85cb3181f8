"""Measures the robust accuracy of any function from images to logits, in one call."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Shaped

from harp_jax import parallel
from harp_jax.attacks import Attack
from harp_jax.evaluation import checks, inputs
from harp_jax.evaluation.functions import Opened, open_up
from harp_jax.evaluation.packed import NATURAL, Outcome, PackedAttack
from harp_jax.evaluation.programs import unit_images
from harp_jax.evaluation.progress import ROBUST
from harp_jax.types import LogitsFn

_PROBED = 64  # images whose outputs are looked at


class Result(NamedTuple):
    """The result of `evaluate`.

    Attributes:
        natural: Share of the images that are classified correctly, in [0, 1] (RobustBench's
            `clean_acc`).
        robust: Share of the images that are classified correctly under all attacks, in [0, 1]
            (`robust_acc`).
        after: Accuracy after 'natural' and each part of the attacks, in order.
        broken_by: For each image the name in `after` that misclassified it first, or ''.
        warnings: Reasons why the accuracies may be too high; none if there is no reason.
        seconds: Time of each of the names, compilation included, over all resumed calls.
        images: Number of images.
        adversarial: Float32 [N, H, W, C] in [0, 1], the misclassified image of each example, or the
            clean image if none was found; None without `keep_images`.
    """

    natural: float
    robust: float
    after: dict[str, float]
    broken_by: Shaped[np.ndarray, " examples"]
    warnings: list[str]
    seconds: dict[str, float]
    images: int
    adversarial: np.ndarray | None = None


def evaluate(
    logits_fn: LogitsFn,
    images: Any,
    labels: Any,
    attacks: str | Attack | Sequence[str | Attack] | Mapping[str, str | Attack] = "autoattack",
    *,
    epsilon: float | None = None,
    norm: str | None = None,
    batch_size: int = 512,
    seed: int = 0,
    progress: epath.PathLike | None = None,
    keep_images: bool = False,
    matmul_precision: str = "highest",
) -> Result:
    """Measures the natural and the robust accuracy of a function from images to logits.

    The attacks run one after the other, each on the images that are still robust. These are packed
    into full batches over all devices. With several processes, every process makes the same call.

    Up to rounding, results do not depend on `batch_size` or on the devices.

    Args:
        logits_fn: Images [n, height, width, channels] in [0, 1] -> logits [n, classes], for any n.
            A JAX function without randomness that treats every image by itself. Floating-point
            arrays that it has captured are not compiled into the programs, even if the function is
            compiled already.
        images: [N, height, width, channels], uint8 or floating point in [0, 1].
        labels: Whole numbers [N], in [0, classes).
        attacks: 'autoattack' (or 'standard'), 'plus', 'rand', parts joined by '+' (see
            `attacks.AutoAttack`), or any attack (see `attacks.base`). Or several of them: a
            sequence, or a dict by the names to report them under.
        epsilon: Radius of attacks given by name, on the [0, 1] scale.
        norm: Norm of attacks given by name, 'linf' (the default) or 'l2'.
        batch_size: Images at once, over all devices of all processes; a multiple of their number.
        seed: Seed of the attacks' noise, which is keyed by the image's place in `images`.
        progress: File ('.npz') that is written after every batch. After a kill the same call
            continues from it. A file of other images, labels, attacks or another function is
            overwritten; the code of your own attacks is not compared. With `keep_images` the file
            holds the images too.
        keep_images: Whether to return the adversarial images too.
        matmul_precision: Precision of float32 products on accelerators, one of
            `parallel.PRECISIONS`: 'default' is the device's own, 'highest' float32.

    Returns:
        The accuracies, and what broke each image.

    Raises:
        ValueError: If an argument does not fit, or logits are not finite, clean or attacked; one
            line that names it.
    """
    chosen = inputs.named_attacks(attacks, epsilon, norm)
    parts = inputs.parts(chosen)
    examples = inputs.examples(images, labels)
    devices = parallel.local_devices()
    precision = parallel.precision_on(devices, matmul_precision)
    batch_size = inputs.fitting_batch(
        batch_size, len(examples.labels), len(devices) * jax.process_count()
    )
    opened = open_up(logits_fn, examples.images.shape[1:])
    inputs.check_labels(examples.labels, opened.classes)
    packed = PackedAttack(
        opened.network,
        parts,
        identity=f"{opened.digest} {parts!r} {'images' if keep_images else ''}{precision or ''}",
        seed=seed,
        batch_size=batch_size,
        devices=devices,
        keep=keep_images,
        precision=precision,
    )
    path = None if progress is None else epath.Path(progress)
    if path is not None and path.is_dir():
        raise ValueError(f"progress={str(path)!r}: allowed are files, new or of this function's")
    weights = parallel.replicate(opened.weights, devices)
    outcome = packed(weights, examples, "evaluate", path)
    sentences = _of_outputs(opened, examples) + checks.of_points(outcome.excess)
    found = {
        "after": outcome.after(),
        "images": len(examples.labels),
        "zero_gradients": outcome.zero_gradients,
        "deterministic": outcome.deterministic,
    }
    sentences += checks.of_parts(", ".join(chosen), found, parts, opened.classes)
    return _result(outcome, sentences)


def _result(outcome: Outcome, sentences: list[str]) -> Result:
    after = outcome.after()
    names = np.array([*outcome.names, ""])
    return Result(
        natural=after[NATURAL],
        robust=after[outcome.names[-1]],
        after=after,
        broken_by=names[np.where(outcome.broken_by == ROBUST, len(names) - 1, outcome.broken_by)],
        warnings=sentences,
        seconds=outcome.seconds,
        images=len(outcome.broken_by),
        adversarial=outcome.adversarial,
    )


def _of_outputs(opened: Opened, examples: inputs.Given) -> list[str]:
    """Warns if the outputs look like probabilities, whose cross-entropy has tiny gradients."""
    images = unit_images({"images": jnp.asarray(examples.images[:_PROBED])})
    outputs = np.asarray(jax.jit(opened.network)(opened.weights, images), np.float64)
    if outputs.min() >= -1e-5 and np.abs(outputs.sum(-1) - 1).max() < 1e-4:
        return ["logits_fn gives what sums to 1: attacks need logits, not probabilities"]
    return []
