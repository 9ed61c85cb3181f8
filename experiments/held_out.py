"""Accuracy on training images that a run has not used: a large set to choose settings on.

python -m experiments.held_out RUN... [--images=10000] [--out=FILE.csv]

Runs on a part of the training images (`data.train_examples`) leave the rest. Choosing between
settings on 1,000 validation images, the epoch included, is choosing by noise: the standard error is
1.4 points. The images are the next ones in the order that the seed gives, after those of validation
and of training. No test image is looked at.

Prints a row for each workdir: natural accuracy and that under the validation's attack.
"""

import argparse
import copy
import pathlib
from typing import Any

import jax

from experiments.finished import check_same_images, data_of, network
from experiments.tables import by_run
from harp_jax import parallel
from harp_jax.config import Config
from harp_jax.config.sections import load_data, validation_attack
from harp_jax.data import DataError, Split
from harp_jax.evaluation.accuracy import make_measurement
from harp_jax.models.sparse import fastest
from harp_jax.run.networks import SPARSE_GROUP
from harp_jax.workdir import files

BATCH = 640


def unused(config: Config, images: int) -> Split:
    """Returns training images that a run neither trains nor validates on.

    Args:
        config: The configuration of the run.
        images: Their number.

    Raises:
        SystemExit: If the run trains on all images, or leaves fewer.
    """
    data = config.data
    if data.train_examples is None:
        raise SystemExit("error: data.train_examples=None: allowed are runs that leave images")
    used = data.validation_examples + data.train_examples
    larger = copy.deepcopy(config)
    with larger.unlocked():
        larger.data.update(validation_examples=used + images, train_examples=1)
        larger.data.select_on = "validation"  # also where a run chooses on test images
    try:
        split = load_data(larger).validation
    except DataError as error:
        raise SystemExit(f"error: --images={images}, after {used} that are used: {error}") from None
    return split.take(slice(used, used + images))


def measured(workdir: pathlib.Path, images: int) -> dict[str, Any]:
    """Measures a run's last network.

    Args:
        workdir: The run.
        images: Number of images.

    Returns:
        A row: accuracies in percent.

    Raises:
        SystemExit: If the run has no finished stage, or leaves too few images.
        ValueError: If its data are others now, or its networks have seen other images.
    """
    config, _ = data_of(workdir)
    check_same_images(workdir)
    done = [stage for stage in files.STAGES if (workdir / stage / files.RESULT).exists()]
    if not done:
        raise SystemExit(f"error: {workdir}: allowed are workdirs with a finished stage")
    model, variables, _ = network(workdir / done[-1])
    devices = jax.local_devices()[:1]
    measurement = make_measurement(
        fastest(model, variables),
        seed=config.seed,
        batch_size=BATCH,
        devices=devices,
        group=SPARSE_GROUP,
    )
    plain = measurement.bake(parallel.replicate(variables, devices))
    row: dict[str, Any] = {"run": workdir.resolve().name, "stage": done[-1], "images": images}
    split = unused(config, images)
    for name, attack in (("natural", None), ("robust", validation_attack(config))):
        accuracy = measurement.under(attack)(plain, split, f"{workdir.name} {name}").accuracy
        row[name] = round(100 * accuracy, 2)
    return row


def main() -> None:
    """Prints the rows, and writes them to a file if one is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="folder of a run")
    parser.add_argument("--images", type=int, default=10_000, help="number of images (%(default)s)")
    parser.add_argument("--out", type=pathlib.Path, help="table to add rows to, CSV")
    arguments = parser.parse_args()
    if arguments.images < 1:
        parser.error(f"--images={arguments.images}: allowed are whole numbers >= 1")
    by_run(arguments.runs, lambda workdir: measured(workdir, arguments.images), arguments.out)


if __name__ == "__main__":
    main()
