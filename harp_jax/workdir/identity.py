"""Whether two configurations are of the same run.

A finished run outlives the next field of the configuration: a field that the older run did not know
counts as its default, a field that is gone is not looked at, and both are said. A default whose
meaning changed gets a row in `FORMER_DEFAULTS`, and `FORMAT` grows by one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util

FORMAT = 1  # of config.json; grows with every row of FORMER_DEFAULTS
# Field -> (the format that changed it, what a run of an older format that does not have it did).
FORMER_DEFAULTS: dict[str, tuple[int, Any]] = {}

# Fields that may differ when a workdir is used again: they do not change the trained networks.
# Paths to data and to sources are recorded; the run's identity has their digests instead.
FREE_FIELDS = (
    "stages",
    "devices",
    "compilation_cache",
    "checkpoint_every_steps",
    "data.directory",
    "data.test_examples",
    "data.workers",
    "prune.source",
    "finetune.source",
    "evaluate",
)
Fields = Mapping[str, Any]


class Comparison(NamedTuple):
    """How the configuration of an earlier run compares with that of this one.

    Attributes:
        different: 'field=before, not now' for each field that makes them two runs.
        new: Fields that the earlier run did not know.
        gone: Fields that this version does not know.
    """

    different: list[str]
    new: list[str]
    gone: list[str]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a nested configuration, by dotted name; an empty section has none."""
    return dict(traverse_util.flatten_dict(dict(config), sep="."))


def compare(
    before: Fields,
    now: Fields,
    defaults: Fields,
    form: int = 0,
    free: tuple[str, ...] = FREE_FIELDS,
) -> Comparison:
    """Compares two configurations field by field.

    Args:
        before: Fields of the earlier run, as `flat` gives them.
        now: Those of this one.
        defaults: Those of the defaults of this version.
        form: The `FORMAT` of the earlier run, 0 where it does not say.
        free: Fields, or sections, that may differ.

    Returns:
        The comparison.
    """

    def assumed(field: str) -> Any:
        changed, former = FORMER_DEFAULTS.get(field, (0, None))
        return former if form < changed else defaults.get(field)

    known = {field: before[field] if field in before else assumed(field) for field in now}
    sections = tuple(f"{field}." for field in free)
    different = [
        f"{field}={known[field]!r}, not {now[field]!r}"
        for field in sorted(now)
        if _without_path(field, known[field]) != _without_path(field, now[field])
        and not f"{field}.".startswith(sections)
    ]
    attacks = "evaluate.attacks."
    new, gone = (
        sorted(field for field in one if field not in other and not field.startswith(attacks))
        for one, other in ((now, before), (before, now))
    )
    return Comparison(different, new, gone)


def _without_path(field: str, value: Any) -> Any:
    """'idx:FOLDER' names a place; what lies there has a digest."""
    if field == "data.name" and isinstance(value, str):
        return value.partition(":")[0] if value.startswith("idx:") else value
    return value
