"""Reads several runs, and finds those that differ in their seed alone."""

import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from harp_jax.config import default
from harp_jax.report import recorded
from harp_jax.report.recorded import Record, Recorded
from harp_jax.workdir import ReportError, files, identity, ownership

_SEED = "seed"
_SOURCES = ("prune.source", "finetune.source")  # paths, often of a run of the same seed
_STRATEGY = "prune.strategy"
DATA, MODEL, TEST_IMAGES = "data.name", "model", "test images"
_PRECISION = "evaluate.matmul_precision"
_OF_TABLE = (TEST_IMAGES, _PRECISION)  # fields that the rows of the table have


class Run(NamedTuple):
    """A run and what it is compared by.

    Attributes:
        name: Name on the page.
        seed: Its seed.
        found: What it has recorded.
        fields: What its networks and numbers depend on, apart from the seed: fields of the
            configuration by dotted name, and the test images.
    """

    name: str
    seed: int
    found: Recorded
    fields: Record


class Configuration(NamedTuple):
    """Runs that differ in their seed alone.

    Attributes:
        letter: Name on the page.
        runs: One a seed, in the order of the seeds.
        repeated: Further runs of these seeds, which count nowhere.
        fields: Those of the runs.
    """

    letter: str
    runs: Sequence[Run]
    repeated: Sequence[Run]
    fields: Record


def read(workdirs: Sequence[epath.PathLike]) -> list[Run]:
    """Reads runs, finished or not.

    Args:
        workdirs: Their folders; one that is given twice counts once.

    Returns:
        The runs in this order.

    Raises:
        ReportError: If a folder is none of a run, or a file in it cannot be read.
    """
    paths = list(dict.fromkeys(map(epath.Path, workdirs)))
    names = [path.name for path in paths]
    unique = len(set(names)) == len(names)
    found = [_read(path, path.name if unique else str(path)) for path in paths]
    known: dict[Any, dict[str, Any]] = {}
    for run in found:  # a run without a table is taken to have what the tables of the others have
        if run.found.rows:
            known.setdefault(_without_table(run), {name: run.fields[name] for name in _OF_TABLE})
    return [
        run
        if run.found.rows
        else run._replace(fields={**run.fields, **known.get(_without_table(run), {})})
        for run in found
    ]


def _without_table(run: Run) -> str:
    return _key({**run.fields, **dict.fromkeys(_OF_TABLE)})


def _read(path: epath.Path, name: str) -> Run:
    found = recorded.read(path)
    config = found.run.get("config")
    if not config:
        raise ReportError(
            f"{path}: has no {files.CONFIG} and no {files.RESULTS} with a configuration; allowed"
            " are folders of runs"
        )
    defaults = identity.flat(ownership.plain(default()))
    former = identity.former_defaults(found.run.get("format") or 0)
    fields = {**defaults, **former, **identity.flat(config)}
    seed = fields.pop(_SEED)
    free = tuple(f"{field}." for field in identity.FREE_FIELDS if field not in _SOURCES)
    fields = {name: each for name, each in fields.items() if not f"{name}.".startswith(free)}
    for field in _SOURCES:
        fields[field] = _of_any_seed(str(fields.get(field) or ""), seed)
    source = (found.run.get("sources") or {}).get(_STRATEGY) or {}
    if source.get("digest"):
        prefix = str(source["given"]).partition(":")[0]
        fields[_STRATEGY] = f"{prefix}: {source['digest'][:8]}"
    digests = {row["images_digest"] for row in found.rows if row.get("images_digest")}
    fields[TEST_IMAGES] = ", ".join(sorted(digest[:8] for digest in digests)) or None
    precisions = {str(row["matmul_precision"]) for row in found.rows if row.get("matmul_precision")}
    fields[_PRECISION] = ", ".join(sorted(precisions)) or None
    fields[DATA] = found.results.get("dataset", {}).get("name") or fields.get(DATA)
    return Run(name, seed, found, fields)


def _of_any_seed(path: str, seed: int) -> str:
    """Replaces the last number of a path by 'SEED' if it is the run's seed."""
    return re.sub(rf"(?<!\d){seed}(?=\D*$)", "SEED", path)


def _key(fields: Record) -> str:
    return repr(sorted(fields.items()))


def configurations(runs: Iterable[Run]) -> list[Configuration]:
    """Sorts runs into those that differ in their seed alone, in order of their first ones."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run.fields), []).append(run)
    made = []
    for letter, group in zip(_letters(), groups.values(), strict=False):
        first = {run.seed: run for run in reversed(group)}
        repeated = [run for run in group if first[run.seed] is not run]
        chosen = [first[seed] for seed in sorted(first)]
        made.append(Configuration(letter, chosen, repeated, group[0].fields))
    return made


def _letters() -> Iterator[str]:
    """Yields A, B, ..., Z, A1, B1, ..."""
    yield from string.ascii_uppercase
    number = 1
    while True:
        yield from (f"{letter}{number}" for letter in string.ascii_uppercase)
        number += 1


def differences(found: Sequence[Configuration]) -> dict[str, list[Any]]:
    """Lists the fields that differ, with the value of each configuration.

    Args:
        found: The configurations.

    Returns:
        Field -> one value a configuration, None where it has none; model and data first.
    """
    fields = dict.fromkeys([DATA, MODEL, *sorted({name for each in found for name in each.fields})])
    values = {field: [each.fields.get(field) for each in found] for field in fields}
    return {field: each for field, each in values.items() if len(set(map(repr, each))) > 1}
