"""Means over seeds, and what is missing for them."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from harp_jax.report import words
from harp_jax.report.recorded import Record
from harp_jax.report.runs import Configuration, Run
from harp_jax.workdir import files
from harp_jax.workdir.records import STAGES

NATURAL = "natural"


class Attacks:
    """The attacks of several runs; those of one name with other settings are kept apart.

    Attributes:
        settings: Label -> settings in words.
    """

    def __init__(self, runs: Sequence[Run]):
        """Labels all attacks that the rows of the runs have."""
        by_name: dict[str, list[str]] = {}
        for run in runs:
            for name in dict.fromkeys(name for row in run.found.rows for name in row["robust"]):
                found = by_name.setdefault(name, [])
                found += [_settings(run, name)] if _settings(run, name) not in found else []
        self._labels = {
            (name, each): name if len(settings) == 1 else f"{name} [{number}]"
            for name, settings in by_name.items()
            for number, each in enumerate(settings, start=1)
        }
        self.settings = {label: words_of for (_, words_of), label in self._labels.items()}

    def accuracies(self, run: Run, row: Record) -> dict[str, float]:
        """Returns the accuracies of a row by 'natural' and label."""
        robust = {self._labels[n, _settings(run, n)]: each for n, each in row["robust"].items()}
        return {NATURAL: row[NATURAL], **robust}

    def names(self, run: Run, row: Record) -> dict[str, str]:
        """Returns the names of a row's attacks by label."""
        return {self._labels[name, _settings(run, name)]: name for name in row["robust"]}

    def kinds(self) -> list[str]:
        """Returns 'natural' and all labels."""
        return [NATURAL, *self.settings]


def _settings(run: Run, name: str) -> str:
    return words.attack((run.found.results.get("attacks") or {}).get(name) or {})


class Line(NamedTuple):
    """A line of the table: one network of one configuration.

    Attributes:
        letter: Of the configuration.
        stage: Of the network.
        sparsity: In words.
        kept: Kept weights, in words.
        accuracies: By kind, in words: mean and standard deviation over the seeds.
        seeds: The seeds, in words.
    """

    letter: str
    stage: str
    sparsity: str
    kept: str
    accuracies: Mapping[str, str]
    seeds: str


def lines(found: Sequence[Configuration], attacks: Attacks) -> list[Line]:
    """Builds the table of means over seeds.

    Args:
        found: Configurations of the same data and model.
        attacks: The attacks of their runs.

    Returns:
        One line a stage and configuration, of those that some run has.
    """
    return [
        _line(stage, each, rows, attacks)
        for stage in STAGES
        for each in found
        if (rows := [(run, row) for run in each.runs if (row := row_of(run, stage)) is not None])
    ]


def row_of(run: Run, stage: str) -> Record | None:
    """Returns a stage's row of a run; None if it has none."""
    return next((row for row in run.found.rows if row["stage"] == stage), None)


def _line(
    stage: str, of: Configuration, rows: Sequence[tuple[Run, Record]], attacks: Attacks
) -> Line:
    measured = [attacks.accuracies(run, row) for run, row in rows]
    images = min(row["images"] for _, row in rows)
    accuracies = {}
    for kind in attacks.kinds():
        values = [each[kind] for each in measured if kind in each]
        accuracies[kind] = spread(values, images)
        if values and len(values) < len(rows):
            accuracies[kind] += f" ({len(values)} of {len(rows)})"
    kept = sorted({row["parameters"] for _, row in rows})
    return Line(
        letter=of.letter,
        stage=stage,
        sparsity=words.sparsity(statistics.fmean(row["sparsity"] for _, row in rows)),
        kept=f"{kept[0]:,}" if len(kept) == 1 else f"{kept[0]:,} to {kept[-1]:,}",
        accuracies=accuracies,
        seeds=", ".join(str(run.seed) for run, _ in rows),
    )


def spread(values: Sequence[float], images: int) -> str:
    """Words the mean of accuracies with their standard deviation, in percent.

    Args:
        values: Accuracies in [0, 1], one a seed.
        images: Number of the test images.

    Returns:
        Such as '97.1 ± 0.3 %'; one value has no deviation, none is ''.
    """
    if len(values) < 2:
        return "".join(words.score({"images": images}, value) for value in values)
    mean = words.score({"images": images}, statistics.fmean(values)).removesuffix(" %")
    digits = len(mean.partition(".")[2])
    return f"{mean} ± {100 * statistics.stdev(values):.{digits}f} %"


def missing(found: Sequence[Configuration], attacks: Attacks) -> Iterator[tuple[str, str]]:
    """Says what each run lacks that another one of the same data and model has.

    Args:
        found: Configurations of the same data and model.
        attacks: The attacks of their runs.

    Yields:
        Name of the run, and what it lacks, in words.
    """
    runs = [run for each in found for run in each.runs]
    stages = [s for s in STAGES if any(row_of(run, s) for run in runs)]
    for each in found:
        for run in each.repeated:
            first = next(other for other in each.runs if other.seed == run.seed)
            yield run.name, f"has the configuration and the seed of {first.name}; only that counts"
    for run in runs:
        for text in _lacks(run, stages, attacks):
            yield run.name, text
        if run.found.sizes is None and any(other.found.sizes is not None for other in runs):
            yield run.name, f"has no {files.SIZES}, so no size of its file"


def _lacks(run: Run, stages: Sequence[str], attacks: Attacks) -> Iterator[str]:
    """Says which networks and attacks are not in the table of a run."""
    if not run.found.rows:
        done = ", ".join(map(words.stage, run.found.complete)) or "none"
        yield f"has no {files.RESULTS} with rows: not evaluated yet (complete networks: {done})"
        return
    if not run.found.results.get("complete", True):
        yield "its evaluation is not complete"
    for stage in stages:
        row = row_of(run, stage)
        if row is None:
            yield f"has no {words.stage(stage)} network in its table"
            continue
        measured = attacks.accuracies(run, row)
        absent = [kind for kind in attacks.kinds() if kind not in measured]
        if absent:
            yield f"its {words.stage(stage)} network was not measured under {', '.join(absent)}"
