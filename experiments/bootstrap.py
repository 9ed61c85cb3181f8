"""Intervals of accuracies over test images and seeds, and of the differences between methods.

python -m experiments.bootstrap --matrix=experiments/matrices/fashion_best.py

Reads the outcome of AutoAttack on every test image, which `experiments.compare` keeps in
experiments/results/NAME_outcomes.csv, and writes NAME_intervals.csv beside it. All networks see the
same test images, so images are drawn together for all of them; seeds are drawn for each method,
since each is another training.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments import compare, outcomes
from experiments.matrix import DENSE, Cell, Matrix, cells
from experiments.tables import KEY, read, write
from harp_jax.evaluation import ROBUST

DRAWS, LEVEL = 4000, 0.95
AGAINST = "HARP, live"
_CHUNK = 250  # draws at once, for memory

Outcomes = Bool[np.ndarray, "seeds images"]
Key = tuple[str, ...]


class Interval(NamedTuple):
    """A mean and its percentile interval.

    Attributes:
        mean: Mean over seeds and images.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


def means(
    outcomes: Outcomes, draws: int = DRAWS, seed: int = 0, of_seeds: int = 0
) -> Float[np.ndarray, " draws"]:
    """Draws seeds and images with replacement, and computes the mean of each draw.

    Args:
        outcomes: Whether each network classifies each image correctly; one row a seed.
        draws: Number of draws, >= 1.
        seed: Draws of the same number of images with the same seed are of the same images.
        of_seeds: Draws with different numbers are of other seeds.

    Returns:
        Means in [0, 1]. Of one seed, images alone vary.
    """
    seeds, images = outcomes.shape
    networks = np.random.default_rng((seed, 1, of_seeds)).multinomial(
        seeds, np.full(seeds, 1 / seeds), draws
    )
    random, found = np.random.default_rng((seed, 0)), []
    for start in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - start)
        chosen = random.multinomial(images, np.full(images, 1 / images), count)
        correct = networks[start : start + count] @ outcomes.astype(np.int64)
        found.append((correct * chosen).sum(1) / (seeds * images))
    return np.concatenate(found)


def interval(outcomes: Outcomes, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Computes the interval of a method's accuracy.

    Args:
        outcomes: See `means`.
        draws: Number of draws, >= 1.
        level: Share of the draws inside, in (0, 1).
    """
    return _interval(float(outcomes.mean()), means(outcomes, draws), level)


def difference(
    one: Outcomes, other: Outcomes, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Computes the interval of the difference between two methods, on the same drawn images.

    Args:
        one: See `means`.
        other: The same images; any number of seeds.
        draws: Number of draws, >= 1.
        level: Share of the draws inside, in (0, 1).

    Returns:
        The interval of `one`'s accuracy minus `other`'s.

    Raises:
        ValueError: If they have other numbers of images.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            f"images={other.shape[1]}: allowed are as many as of the other, {one.shape[1]}"
        )
    drawn = means(one, draws, of_seeds=0) - means(other, draws, of_seeds=1)
    return _interval(float(one.mean() - other.mean()), drawn, level)


def _interval(mean: float, drawn: Float[np.ndarray, " draws"], level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def outcomes_of(of_method: Sequence[Cell], texts: Mapping[Key, str]) -> Outcomes | None:
    """Reads which images the networks of a method withstand; None if none is measured.

    Args:
        of_method: Cells that differ in the seed.
        texts: What broke each image, as text, by the key of the cell.

    Raises:
        ValueError: If they have other numbers of images, or a text is none of outcomes.
    """
    found = []
    for cell in of_method:
        if cell.key not in texts:
            continue
        try:
            outcome = outcomes.from_text(texts[cell.key])
        except ValueError as error:
            raise ValueError(f"{cell.name}: {error}") from None
        if found and len(outcome) != len(found[0]):
            allowed = f"as many as of the other seeds, {len(found[0])}"
            raise ValueError(f"{cell.name}: images={len(outcome)}: allowed are {allowed}")
        found.append(outcome == ROBUST)
    return np.stack(found) if found else None


def table(matrix: Matrix, texts: Mapping[Key, str], against: str) -> list[dict[str, Any]]:
    """Builds the rows of the intervals, in percent.

    Args:
        matrix: The matrix.
        texts: See `outcomes_of`.
        against: Name of the method that the others are compared with, target by target. All are
            compared with the dense network, too.

    Raises:
        ValueError: If the outcomes of two methods that are compared are of other numbers of images,
            or a text is none of outcomes.
    """
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in cells(matrix):
        groups.setdefault((cell.method, cell.target), []).append(cell)
    read = {key: outcomes_of(of_method, texts) for key, of_method in groups.items()}
    measured = {key: found for key, found in read.items() if found is not None}
    rows = []
    for (method, target), found in measured.items():
        row = {"method": method, "target": f"{target:g}", "seeds": len(found)}
        row |= _words("autoattack", interval(found))
        for other in dict.fromkeys([(against, target), (DENSE, 1.0)]):
            if other not in measured or method == other[0]:
                continue
            try:
                row |= _words(f"minus {other[0]}", difference(found, measured[other]))
            except ValueError as error:
                raise ValueError(f"{method}, target {target:g}: {error}") from None
        rows.append(row)
    return rows


def _words(name: str, of: Interval) -> dict[str, float]:
    entries = {name: of.mean, f"{name}, low": of.low, f"{name}, high": of.high}
    return {label: round(100 * value, 2) for label, value in entries.items()}


def main() -> None:
    """Writes the table of a matrix."""
    parser = argparse.ArgumentParser(description="See the head of this file.")
    parser.add_argument("--matrix", type=pathlib.Path, required=True)
    parser.add_argument("--against", help=f"method to compare with; {AGAINST!r} if it is there")
    parser.add_argument(
        "--results", type=pathlib.Path, default=compare.RESULTS, help="of the tables"
    )
    arguments = parser.parse_args()
    matrix, against = compare.load(arguments.matrix), arguments.against
    path = arguments.results / f"{arguments.matrix.stem}_outcomes.csv"
    lines = read(path, *KEY, outcomes.COLUMN)
    texts = {tuple(line[name] for name in KEY): line[outcomes.COLUMN] for line in lines}
    try:
        rows = table(matrix, texts, against or AGAINST)
    except ValueError as error:
        parser.error(f"{path}: {error}")
    if not rows:
        parser.error(f"{path}: has no outcomes of the matrix; experiments.compare measures them")
    measured = list(dict.fromkeys(row["method"] for row in rows))
    if against is not None and against not in measured:
        parser.error(f"--against={against}: allowed are methods with outcomes: {measured}")
    path = arguments.results / f"{arguments.matrix.stem}_intervals.csv"
    write(path, rows)
    print(path)


if __name__ == "__main__":
    main()
