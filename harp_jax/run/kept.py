"""The part of an earlier results.json that stays when a workdir is evaluated again."""

import json
import logging
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from harp_jax.attacks import Attack
from harp_jax.config.sections import ConfigError, make_attack
from harp_jax.evaluation import warnings
from harp_jax.workdir import files, write_json
from harp_jax.workdir.checksums import signed
from harp_jax.workdir.records import Row

_LOGGER = logging.getLogger(__name__)

# Entries of a row with a member for each attack.
_BY_ATTACK = ("robust", "balanced", "correct", "autoattack")


class Kept(NamedTuple):
    """Rows of an earlier table, without the attacks that are measured anew.

    Attributes:
        rows: By stage.
        settings: Of the attacks in them, by name.
    """

    rows: dict[str, Row]
    settings: dict[str, Any]


def of_earlier(
    earlier: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    owners: Mapping[str, Mapping[str, Any]],
) -> Kept:
    """Chooses what stays of an earlier table.

    Args:
        earlier: Content of results.json; None if there is none.
        settings: Of the attacks of this evaluation, by name. An attack with other settings than
            before is dropped from all rows.
        owners: For each stage what its row has to hold: 'network_digest', 'images_digest', 'seed',
            and 'matmul_precision' unless the row is from before there was one.

    Returns:
        The rows of the same networks on the same test images.
    """
    if earlier is None:
        return Kept({}, {})
    measured = earlier.get("attacks") or {}
    now = json.loads(files.json_text(settings))
    changed = {name for name in now if name in measured and measured[name] != now[name]}
    rows = {
        row["stage"]: without(row, changed | (row["robust"].keys() - measured.keys()))
        for row in earlier["rows"]
        if row["stage"] in owners and _is_of(row, owners[row["stage"]])
    }
    names = dict.fromkeys(name for row in rows.values() for name in row["robust"])
    return Kept(rows, {name: measured[name] for name in names})


def _is_of(row: Row, owner: Mapping[str, Any]) -> bool:
    older = {"matmul_precision": owner["matmul_precision"]}
    return owner.items() <= {**older, **row}.items()


def keep_previous(earlier: Mapping[str, Any] | None, kept: Kept, workdir: Any) -> None:
    """Copies an earlier table to results.previous.json if something of it does not stay."""
    if earlier is not None and list(kept.rows.values()) != earlier["rows"]:
        path = workdir / files.PREVIOUS_RESULTS
        write_json(path, signed(earlier))
        _LOGGER.warning("evaluate: other networks, images or settings than before: see %s", path)


def without(row: Row, names: Collection[str]) -> Row:
    """Returns a row without some attacks."""
    left = {**row}
    for entry in _BY_ATTACK:
        if entry in row:
            left[entry] = {name: each for name, each in row[entry].items() if name not in names}
    if "warnings" in row:
        left["warnings"] = [said for said in row["warnings"] if said.partition(":")[0] not in names]
    if "checks" in row:
        excess, zero = (row["checks"].get(entry, {}) for entry in ("excess", "zero_gradients"))
        left["checks"] = checks(
            {name: x for name, x in excess.items() if name not in names},
            {name: share for name, share in zero.items() if name not in names},
        )
    return left


def checks(
    excess: Mapping[str, float | None], zero_gradients: Mapping[str, float]
) -> dict[str, Any]:
    """Makes the entry 'checks' of a row.

    Args:
        excess: By how much points left their ball, by attack; None for no number.
        zero_gradients: Share of the images at which the attack's loss has a zero gradient, by
            attack; those without gradients are left out.

    Returns:
        'excess', 'zero_gradients', and 'largest_excess' over all attacks, None if one is.
    """
    values = list(excess.values())
    known = [value for value in values if value is not None]
    largest = max(known, default=0.0) if len(known) == len(values) else None
    return {
        "largest_excess": largest,
        "excess": dict(excess),
        "zero_gradients": dict(zero_gradients),
    }


def doubts(row: Row, settings: Mapping[str, Any], classes: int) -> list[str]:
    """Lists what a reader of a row has to know, see `evaluation.warnings`.

    Args:
        row: The row, with its former 'warnings' if it has any. Of an attack that cannot be built
            any more (a user's own, whose module is gone) those stay.
        settings: Of all attacks in it, by name.
        classes: Number of classes.

    Returns:
        The sentences.
    """
    attacks: dict[str, Attack] = {}
    for name in row["robust"]:
        try:
            attacks[name] = make_attack(settings[name], f"evaluate.attacks.{name}")
        except ConfigError as error:
            _LOGGER.info("%s; its accuracies stay", error)
    gone = row["robust"].keys() - attacks.keys()
    former = [text for text in row.get("warnings") or [] if text.partition(":")[0] in gone]
    return former + warnings(without(row, gone), attacks, classes)
