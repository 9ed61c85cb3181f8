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

from experiments.finished import broken_by, data_of, network
from experiments.tables import by_run
from harp_jax import models
from harp_jax.attacks import PGD, norms, objectives
from harp_jax.config.sections import make_attack
from harp_jax.data.augment import to_unit
from harp_jax.evaluation.packed import NATURAL
from harp_jax.models.sparse import fastest
from harp_jax.pruning.layers import bake
from harp_jax.workdir import files

STEPS, RESTARTS = 100, 50
LOSSES = ("ce", "margin")
SQUARE = "square"


def again(workdir: pathlib.Path) -> dict[str, Any]:
    """Attacks the images that only Square broke with more steps of PGD.

    Args:
        workdir: A run with an outcome of AutoAttack.

    Returns:
        A row: numbers of images, and how many of Square's PGD finds on each loss.

    Raises:
        SystemExit: If the run has no complete outcome of an AutoAttack with Square.
        ValueError: If its data are others now.
    """
    stage, outcome = _outcome(workdir)
    config, dataset = data_of(workdir)
    whole: Any = make_attack(config.evaluate.attacks.autoattack, "evaluate.attacks.autoattack")
    names = (NATURAL, *whole.parts())
    if whole.norm != "linf" or SQUARE not in names:
        said = f"evaluate.attacks.autoattack of {workdir} is {whole}"
        raise SystemExit(f"error: {said}; allowed are attacks with {SQUARE} in the L_inf ball")
    places = np.flatnonzero(outcome == names.index(SQUARE)).astype(np.int32)
    row = {"run": workdir.resolve().name, "stage": stage, "images": len(outcome)}
    row |= {"only square": len(places)}
    if len(places) == 0:
        return row | dict.fromkeys(LOSSES, 0) | {"either": 0}
    model, variables, _ = network(workdir / stage)
    form, plain = fastest(model, variables), jax.jit(bake)(variables)
    split = dataset.test.take(places)
    images, labels = to_unit(jnp.asarray(split.images)), jnp.asarray(split.labels)
    keys = norms.per_example_keys(jax.random.key(config.seed), len(places))
    step_size = config.attack.step_size

    def broken(loss: str) -> np.ndarray:
        pgd = PGD(whole.epsilon, step_size, STEPS, RESTARTS, objective=loss)

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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="folder of a run")
    parser.add_argument("--out", type=pathlib.Path, help="table to add rows to, CSV")
    arguments = parser.parse_args()
    by_run(arguments.runs, again, arguments.out)


if __name__ == "__main__":
    main()
