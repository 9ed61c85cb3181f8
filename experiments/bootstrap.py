"""Intervals of accuracies over test images and seeds, and of the differences between methods.

python -m experiments.bootstrap --matrix=experiments/matrices/fashion_best.py

Reads the outcome of AutoAttack on every test image, which `experiments.compare` keeps in
experiments/results/NAME_outcomes.csv, and writes NAME_intervals.csv beside it. All networks see the
same test images, and those of a seed start from the same dense network, so two methods are compared
on the same drawn images and seeds, of the seeds that both have.
"""

import argparse
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from experiments import compare, outcomes
from experiments.matrix import DENSE, Matrix, cells
from experiments.tables import KEY, Line, read, write
from harp_jax.evaluation import ROBUST

DRAWS, LEVEL = 4000, 0.95
AGAINST = "HARP, live"
_CHUNK = 250  # draws at once, for memory

Outcomes = Bool[np.ndarray, "seeds images"]
Outcome = Bool[np.ndarray, " images"]
Group = tuple[str, float]  # method and target


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
    values: Shaped[np.ndarray, "seeds images"], draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """Draws seeds and images with replacement, and computes the mean of each draw.

    One seed less is drawn than there are: with as many, means over few seeds vary too little, by a
    third with three seeds (McCarthy and Snowden, "The Bootstrap and Finite Population Sampling",
    1985). The tails stay those of a few values: with three seeds intervals are still narrow.

    Args:
        values: Whether each network classifies each image correctly, or the difference of two such
            arrays; one row a seed.
        draws: Number of draws, >= 1.
        seed: Draws of the same shape with the same seed are of the same seeds and images.

    Returns:
        Means. Of one seed, images alone vary.
    """
    seeds, images = values.shape
    drawn = max(seeds - 1, 1)
    random = np.random.default_rng((seed, 1))
    networks = random.multinomial(drawn, np.full(seeds, 1 / seeds), draws)
    random, found = np.random.default_rng((seed, 0)), []
    for start in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - start)
        chosen = random.multinomial(images, np.full(images, 1 / images), count)
        sums = networks[start : start + count] @ values.astype(np.int64)
        found.append((sums * chosen).sum(1) / (drawn * images))
    return np.concatenate(found)


def interval(
    values: Shaped[np.ndarray, "seeds images"], draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Computes the interval of a method's accuracy, or of the difference between two.

    Args:
        values: See `means`.
        draws: Number of draws, >= 1.
        level: Share of the draws inside, in (0, 1).
    """
    drawn = means(values, draws)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def difference(
    one: Outcomes, other: Outcomes, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """Computes the interval of the difference between two methods, seed by seed.

    Args:
        one: Whether each network classifies each image correctly.
        other: The same of the same seeds and images.
        draws: Number of draws, >= 1.
        level: Share of the draws inside, in (0, 1).

    Returns:
        The interval of `one`'s accuracy minus `other`'s.

    Raises:
        ValueError: If they have other numbers of seeds or images.
    """
    if one.shape != other.shape:
        allowed = f"as many seeds and images as of the other, {one.shape}"
        raise ValueError(f"outcomes={other.shape}: allowed are {allowed}")
    return interval(one.astype(int) - other.astype(int), draws, level)


def withstood(matrix: Matrix, lines: Sequence[Line]) -> dict[Group, dict[int, Outcome]]:
    """Reads which images the networks of a matrix withstand.

    Args:
        matrix: The matrix.
        lines: Rows with the outcomes of cells, as `experiments.compare` writes them.

    Returns:
        Outcomes by method and target, then by seed; of what is measured.

    Raises:
        ValueError: If they have other numbers of images, or a text is none of outcomes.
    """
    texts = {tuple(line[name] for name in KEY): line[outcomes.COLUMN] for line in lines}
    found: dict[Group, dict[int, Outcome]] = {}
    images = None
    for cell in cells(matrix):
        if cell.key not in texts:
            continue
        try:
            outcome = outcomes.from_text(texts[cell.key]) == ROBUST
        except ValueError as error:
            raise ValueError(f"{cell.name}: {error}") from None
        images = images or len(outcome)
        if len(outcome) != images:
            allowed = f"as many as of the others, {images}"
            raise ValueError(f"{cell.name}: images={len(outcome)}: allowed are {allowed}")
        found.setdefault((cell.method, cell.target), {})[cell.seed] = outcome
    return found


def table(measured: Mapping[Group, Mapping[int, Outcome]], against: str) -> list[Line]:
    """Builds the rows of the intervals, in percent.

    Args:
        measured: See `withstood`.
        against: Name of the method that the others are compared with, target by target. All are
            compared with the dense network, too; over the seeds that both have.
    """
    rows = []
    for (method, target), found in measured.items():
        row = {"method": method, "target": f"{target:g}", "seeds": _names(found)}
        row |= _words("autoattack", interval(np.stack(list(found.values()))))
        for other in dict.fromkeys([(against, target), (DENSE, 1.0)]):
            theirs = measured.get(other, {})
            both = [seed for seed in found if seed in theirs]
            if method == other[0] or not both:
                continue
            ours, compared = (np.stack([of[seed] for seed in both]) for of in (found, theirs))
            row |= _words(f"minus {other[0]}", difference(ours, compared))
            row[f"minus {other[0]}, seeds"] = _names(both)
        rows.append(row)
    return rows


def without_outcome(lines: Sequence[Line], rows: Sequence[Line]) -> list[str]:
    """Names the cells that have an accuracy under AutoAttack, and no outcome on each image.

    Args:
        lines: Rows with outcomes.
        rows: Rows with accuracies.
    """
    known = {tuple(line[name] for name in KEY) for line in lines}
    keys = [tuple(row[name] for name in KEY) for row in rows if row.get("autoattack")]
    return [", ".join(key) for key in keys if key not in known]


def check_same(lines: Sequence[Line], rows: Sequence[Line]) -> None:
    """Checks that outcomes are those of the accuracies under AutoAttack.

    Args:
        lines: Rows with outcomes.
        rows: Rows with accuracies, rounded to four digits.

    Raises:
        ValueError: If a cell has two rows, or its outcomes are others.
    """
    accuracies = {tuple(row[name] for name in KEY): row.get("autoattack") for row in rows}
    seen = set()
    for key, text in ((tuple(line[name] for name in KEY), line[outcomes.COLUMN]) for line in lines):
        if key in seen:
            raise ValueError(f"has two rows of {', '.join(key)}; allowed is one")
        seen.add(key)
        found = float((outcomes.from_text(text) == ROBUST).mean())
        accuracy = accuracies.get(key)
        if accuracy and abs(found - float(accuracy)) > 1e-4:
            said = f"the outcomes of {', '.join(key)} have an accuracy of {found:.4f}"
            raise ValueError(f"{said}; allowed is that of its row, {accuracy}")


def _names(seeds: Iterable[int]) -> str:
    return " ".join(map(str, seeds))


def _words(name: str, of: Interval) -> dict[str, float]:
    entries = {name: of.mean, f"{name}, low": of.low, f"{name}, high": of.high}
    return {label: round(100 * value, 2) for label, value in entries.items()}


def main() -> None:
    """Writes the table of a matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--matrix", type=pathlib.Path, required=True, help="Python file with MATRIX"
    )
    parser.add_argument("--against", help=f"method to compare with; {AGAINST!r} if it is there")
    parser.add_argument(
        "--results", type=pathlib.Path, default=compare.RESULTS, help="of the tables"
    )
    arguments = parser.parse_args()
    matrix, against = compare.load(arguments.matrix), arguments.against
    name = arguments.matrix.stem
    path = arguments.results / f"{name}_outcomes.csv"
    lines = read(path, *KEY, outcomes.COLUMN)
    try:
        accuracies = read(arguments.results / f"{name}_matrix.csv", *KEY)
        of_images = withstood(matrix, lines)
        check_same(lines, accuracies)
        rows = table(of_images, against or AGAINST)
    except ValueError as error:
        parser.error(f"{path}: {error}")
    if not rows:
        parser.error(f"{path}: has no outcomes of the matrix; experiments.compare measures them")
    left_out = without_outcome(lines, accuracies)
    if left_out:
        print(f"left out, no outcomes in {path}: {'; '.join(left_out)}")
    measured = list(dict.fromkeys(row["method"] for row in rows))
    if against is not None and against not in measured:
        parser.error(f"--against={against}: allowed are methods with outcomes: {measured}")
    path = arguments.results / f"{name}_intervals.csv"
    write(path, rows)
    print(path)


if __name__ == "__main__":
    main()
