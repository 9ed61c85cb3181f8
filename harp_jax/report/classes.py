"""Builds the table of accuracy by class."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harp_jax.report import words

Record = Mapping[str, Any]
MOST = 20  # classes of a table
_NATURAL = "natural"


class Line(NamedTuple):
    """A class, the number of its test images, and the accuracies on it, in words."""

    number: int
    images: int
    accuracies: list[str]


class Table(NamedTuple):
    """The table of all networks whose numbers by class were recorded.

    Attributes:
        stages: Their stages.
        kinds: Kinds of accuracy of each: 'natural', and the attack that leaves the last network the
            least, if there is one.
        lines: One a class, with an accuracy for each kind of each stage; of more than `MOST`
            classes those that are worst for the last kind and stage, the worst first.
        worst: The worst of them.
        best: The best of all classes.
        classes: Number of all classes that occur.
        error: Largest standard error of an accuracy, in points.
    """

    stages: list[str]
    kinds: list[str]
    lines: list[Line]
    worst: Line
    best: Line
    classes: int
    error: float


def table(rows: Sequence[Record]) -> Table | None:
    """Builds the table of accuracy by class.

    Args:
        rows: Rows of results.json.

    Returns:
        The table; None if the rows have no numbers by class.
    """
    rows = [row for row in rows if _is_known(row)]
    if not rows:
        return None
    last = rows[-1]
    rows = [row for row in rows if row["class_images"] == last["class_images"]]
    attacks = [name for name in last["robust"] if name in last["correct"]]
    kinds = [_NATURAL, *([min(attacks, key=last["robust"].__getitem__)] if attacks else [])]
    images = {number: count for number, count in enumerate(last["class_images"]) if count > 0}
    cells = [(row, kind) for row in rows for kind in kinds]

    def line(number: int) -> Line:
        return Line(number, images[number], [_worded(*cell, number) for cell in cells])

    ranked = sorted(images, key=lambda number: last["correct"][kinds[-1]][number] / images[number])
    shown = sorted(ranked) if len(ranked) <= MOST else ranked[:MOST]
    return Table(
        stages=[row["stage"] for row in rows],
        kinds=kinds,
        lines=[line(number) for number in shown],
        worst=line(ranked[0]),
        best=line(ranked[-1]),
        classes=len(images),
        error=100 * max(_error(*cell, number) for cell in cells for number in images),
    )


class Means(NamedTuple):
    """Accuracy by class of the last networks of several configurations.

    Attributes:
        stage: Of the networks.
        kinds: 'natural', and of the attacks that all were measured under the one that leaves them
            the least, if there is one.
        letters: Of the configurations that have numbers by class.
        lines: One a class, with a mean over the seeds for each kind of each configuration; of more
            than `MOST` classes those that are worst for the last kind, the worst first.
        classes: Number of all classes that occur.
    """

    stage: str
    kinds: list[str]
    letters: list[str]
    lines: list[Line]
    classes: int


def means(found: Mapping[str, Sequence[tuple[Mapping[str, str], Record]]]) -> Means | None:
    """Builds the table of accuracy by class of several configurations.

    Args:
        found: By the letter of a configuration, for each of its runs the names of attacks in
            `correct` by label, and the row of results.json. All rows are of one stage.

    Returns:
        The table; None if no row has numbers by class.
    """
    known = {
        letter: kept
        for letter, rows in found.items()
        if (kept := [(labels, row) for labels, row in rows if _is_known(row)])
    }
    every = [each for rows in known.values() for each in rows]
    if not every or len({tuple(row["class_images"]) for _, row in every}) > 1:
        return None
    counts = every[0][1]["class_images"]
    images = {number: count for number, count in enumerate(counts) if count > 0}

    def mean(rows: Sequence[tuple[Mapping[str, str], Record]], kind: str, number: int) -> float:
        names = [(row, labels.get(kind, kind)) for labels, row in rows]
        return statistics.fmean(
            row["correct"][name][number] / images[number] for row, name in names
        )

    shared = [
        label
        for label in every[0][0]
        if all(labels.get(label) in row["correct"] for labels, row in every)
    ]
    total = {label: sum(mean(every, label, n) * images[n] for n in images) for label in shared}
    kinds = [_NATURAL, *([min(total, key=total.__getitem__)] if total else [])]
    ranked = sorted(images, key=lambda number: mean(every, kinds[-1], number))
    lines = [
        Line(
            number,
            images[number],
            [
                words.score({"images": images[number]}, mean(rows, kind, number))
                for rows in known.values()
                for kind in kinds
            ],
        )
        for number in (sorted(ranked) if len(ranked) <= MOST else ranked[:MOST])
    ]
    return Means(every[0][1]["stage"], kinds, list(known), lines, len(images))


def _is_known(row: Record) -> bool:
    """Returns whether a row has numbers by class, for the same classes each."""
    images, correct = row.get("class_images"), row.get("correct") or {}
    of_classes = all(
        len(counts) == len(images or [])
        and all(some <= of for some, of in zip(counts, images or [], strict=True))
        for counts in correct.values()
    )
    return any(images or []) and _NATURAL in correct and of_classes


def _worded(row: Record, kind: str, number: int) -> str:
    """Words the accuracy on a class; '' where the row does not have it."""
    if kind not in row["correct"]:
        return ""
    images = row["class_images"][number]
    return words.score({"images": images}, row["correct"][kind][number] / images)


def _error(row: Record, kind: str, number: int) -> float:
    """Computes the standard error of the accuracy on a class."""
    images = row["class_images"][number]
    share = row["correct"][kind][number] / images if kind in row["correct"] else 0.0
    return math.sqrt(share * (1 - share) / images)
