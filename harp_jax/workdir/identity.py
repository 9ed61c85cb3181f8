"""Deciding whether two configurations belong to the same run.

A finished run stays usable when the configuration gets new fields. A field that the older run does
not have counts as its default; a field that no longer exists is ignored; both are reported. If the
meaning of a default changes, add a row to `FORMER_DEFAULTS` and increase `FORMAT` by one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import traverse_util

FORMAT = 1  # of config.json; grows by one with every row of FORMER_DEFAULTS
# Field -> (format that changed its default, value in runs of older formats without the field).
FORMER_DEFAULTS: dict[str, tuple[int, Any]] = {}

# Fields that may differ when a workdir is used again: they do not change the trained networks.
# Paths of data and sources are recorded too, but the run's identity contains their digests.
# See also PATHS.
FREE_FIELDS = (
    "stages",
    "devices",
    "sparse",
    "compilation_cache",
    "checkpoint_every_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "data.directory",
    "data.test_examples",
    "data.workers",
    "prune.source",
    "prune.recipe",  # the fields that it sets are compared
    "finetune.source",
    "evaluate",
)
# Fields with a path behind one of these prefixes; what the path holds has a digest.
PATHS = {
    "data.name": ("cifar:", "folder:", "idx:", "npz:", "parquet:", "svhn:"),
    "prune.strategy": ("json:", "checkpoint:"),
}
Fields = Mapping[str, Any]


class Comparison(NamedTuple):
    """Differences between the configurations of an earlier run and of this run.

    Attributes:
        different: Fields that make them different runs, each as 'field=before, not now'.
        new: Fields that the earlier run does not have.
        gone: Fields that this version does not have.
    """

    different: list[str]
    new: list[str]
    gone: list[str]


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flattens a nested configuration to {dotted name: value}; empty sections vanish."""
    return dict(traverse_util.flatten_dict(dict(config), sep="."))


def former_defaults(form: int) -> dict[str, Any]:
    """Returns the defaults that a format had and this version has not, by field.

    Args:
        form: `FORMAT` of an earlier run; 0 if it is not recorded.
    """
    return {field: value for field, (changed, value) in FORMER_DEFAULTS.items() if form < changed}


def compare(
    before: Fields,
    now: Fields,
    defaults: Fields,
    form: int = 0,
    free: tuple[str, ...] = FREE_FIELDS,
) -> Comparison:
    """Compares two configurations field by field.

    Args:
        before: Fields of the earlier run, from `flat`.
        now: Fields of this run.
        defaults: Fields of the default configuration of this version.
        form: `FORMAT` of the earlier run; 0 if it is not recorded.
        free: Fields or sections that may differ.

    Returns:
        The comparison.
    """
    assumed = {**defaults, **former_defaults(form), **before}
    # What a section of `own` no longer sets has its class's default, which is not known here.
    left = {field: None for field in before if field.startswith("own.") and field not in now}
    now = {**now, **left}
    known = {field: assumed.get(field) for field in now}
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
    """Removes the path behind a prefix of `PATHS`."""
    for prefix in PATHS.get(field, ()):
        if isinstance(value, str) and value.startswith(prefix):
            return prefix
    return value
