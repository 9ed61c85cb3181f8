"""Whether gradients find what only Square found: many more of their steps on just those images.

python -m experiments.square RUN... [--out=FILE.csv]

AutoAttack's Square, which uses no gradients, comes last. Where it breaks images that APGD and FAB
left, either their gradients mislead (masking), or their searches were too short. So PGD searches
again at these images, from many random points and on two losses. What it finds, more search would
have found too; what it does not find is what Square is for.

Reads the outcome of AutoAttack of each workdir's last stage; prints a row for each.
"""

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compare import broken_by, network, write
from harp_jax import models
from harp_jax.attacks import PGD, AutoAttack, norms, objectives
from harp_jax.config import Config
from harp_jax.config.of_workdir import get_config
from harp_jax.config.sections import load_data
from harp_jax.data.augment import to_unit
from harp_jax.evaluation.packed import NATURAL
from harp_jax.models.sparse import fastest
from harp_jax.pruning.layers import bake
from harp_jax.workdir import files

STEPS, RESTARTS = 100, 50
LOSSES = ("ce", "margin")


def again(workdir: pathlib.Path) -> dict[str, Any]:
    """Attacks the images that only Square broke with more steps of PGD.

    Args:
        workdir: A run with an outcome of AutoAttack.

    Returns:
        A row: numbers of images, and how many of Square's PGD finds on each loss.
    """
    stage, outcome = _outcome(workdir)
    config: Config = get_config(str(workdir))
    names = (NATURAL, *AutoAttack(config.attack.epsilon).parts())
    places = np.flatnonzero(outcome == names.index("square")).astype(np.int32)
    row = {"run": workdir.name, "stage": stage, "images": len(outcome), "only square": len(places)}
    if len(places) == 0:
        return row | dict.fromkeys(LOSSES, 0) | {"either": 0}
    model, variables, _ = network(workdir / stage)
    form, plain = fastest(model, variables), jax.jit(bake)(variables)
    split = load_data(config).test.take(places)
    images, labels = to_unit(jnp.asarray(split.images)), jnp.asarray(split.labels)
    keys = norms.per_example_keys(jax.random.key(config.seed), len(places))
    attack = config.attack

    def broken(loss: str) -> np.ndarray:
        pgd = PGD(attack.epsilon, attack.step_size, STEPS, RESTARTS, objective=loss)

        @jax.jit
        def search(plain: Any) -> jax.Array:
            logits_fn = models.logits_fn(form, plain)
            found = pgd(logits_fn, images, labels, keys)
            return objectives.is_wrong(logits_fn(found), labels)

        return np.asarray(search(plain))

    found = {loss: broken(loss) for loss in LOSSES}
    counts = {loss: int(each.sum()) for loss, each in found.items()}
    return row | counts | {"either": int(np.logical_or(*found.values()).sum())}


def _outcome(workdir: pathlib.Path) -> tuple[str, np.ndarray]:
    """Returns the last stage under AutoAttack, and what broke each image."""
    for stage in reversed(files.STAGES):
        outcome = broken_by(workdir, stage)
        if outcome is not None:
            return stage, outcome
    raise SystemExit(f"error: {workdir}: allowed are workdirs with an outcome of AutoAttack")


def main() -> None:
    """Prints the rows, and writes them to a file if one is named."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("runs", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    for workdir in arguments.runs:
        rows.append(again(workdir))
        print(rows[-1], flush=True)
    if arguments.out is not None:
        write(arguments.out, rows)


if __name__ == "__main__":
    main()
