"""Writes a few test images, clean and attacked, for the report."""

import io
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harp_jax import checkpoint, models, parallel
from harp_jax.attacks import Attack
from harp_jax.data import to_unit
from harp_jax.pruning.layers import bake
from harp_jax.run.rows import Subject
from harp_jax.types import Model
from harp_jax.workdir import write_atomically
from harp_jax.workdir.files import EXAMPLES

SHOWN = 10  # images in the report's strip


def write_examples(subject: Subject, stages: Sequence[str], name: str, attack: Attack) -> None:
    """Writes examples.npz: test images evenly spread over the split, with predictions.

    Args:
        subject: The run; its test images are attacked.
        stages: The stages whose networks are attacked.
        name: Name of the attack.
        attack: The attack.
    """
    test, seed = subject.dataset.test, subject.config.seed
    chosen = np.linspace(0, len(test) - 1, min(SHOWN, len(test))).astype(np.int32)
    key = jax.random.key(seed)  # each image has the key that it has when all are attacked
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(chosen)
    shown = test.take(chosen)  # of photos that are decoded no others
    images, labels = to_unit(jnp.asarray(shown.images)), jnp.asarray(shown.labels)

    def attacked(form: Model, variables: Any) -> dict[str, jax.Array]:
        logits_fn = models.logits_fn(form, variables)
        adversarial = attack(logits_fn, images, labels, keys)
        return {
            "adversarial": adversarial,
            "natural_prediction": logits_fn(images).argmax(-1),
            "adversarial_prediction": logits_fn(adversarial).argmax(-1),
        }

    precision = subject.precision()
    if precision is not None:
        attacked = parallel.at_precision(attacked, precision)
    attacked_once = jax.jit(attacked, static_argnums=0)
    plain = jax.jit(bake)  # apart from the attack, which compiles once for equal forms
    arrays = {"images": images, "labels": labels, "attack": name, "epsilon": attack.epsilon}
    for stage in stages:
        variables = checkpoint.load(subject.workdir / stage)
        del variables["metadata"]
        form, variables = subject.networks.measured(stage, variables)
        found = attacked_once(form, plain(variables))
        arrays |= {f"{stage}/{key}": value for key, value in found.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(subject.workdir / EXAMPLES, content.getvalue())
