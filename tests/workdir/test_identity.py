"""When two configurations are of the same run."""

import pytest

from harp_jax.workdir import identity

DEFAULTS = {"seed": 0, "prune.target": 0.1, "pairing.beta": 0.5, "data.name": "digits"}
NOW = {**DEFAULTS, "seed": 3}
OLD = {"seed": 3, "prune.target": 0.1, "data.name": "digits", "prune.forgotten": 7}


def test_what_the_older_run_did_not_know_counts_as_the_default():
    found = identity.compare(OLD, NOW, DEFAULTS)
    assert found == ([], ["pairing.beta"], ["prune.forgotten"])
    changed = identity.compare(OLD, {**NOW, "pairing.beta": 0.7}, DEFAULTS)
    assert changed.different == ["pairing.beta=0.5, not 0.7"]


def test_fields_that_both_know_are_compared():
    found = identity.compare(OLD, {**NOW, "seed": 4, "prune.target": 0.2}, DEFAULTS)
    assert found.different == ["prune.target=0.1, not 0.2", "seed=3, not 4"]


def test_a_default_whose_meaning_changed_has_a_version(monkeypatch):
    monkeypatch.setitem(identity.FORMER_DEFAULTS, "pairing.beta", (2, 0.0))
    assert identity.compare(OLD, NOW, DEFAULTS, form=1).different == ["pairing.beta=0.0, not 0.5"]
    assert identity.compare(OLD, NOW, DEFAULTS, form=2).different == []


def test_a_setting_of_ones_own_that_is_left_out_is_another_one():
    before = {**NOW, "own.MyLoss.beta": 2.0}
    assert identity.compare(before, NOW, DEFAULTS).different == ["own.MyLoss.beta=2.0, not None"]
    assert identity.compare(before, before, DEFAULTS).different == []


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("data.name", "idx:/here", "idx:/there"),
        ("data.name", "parquet:/here/*.parquet", "parquet:/there/*.parquet"),
        ("data.directory", "/here", None),
        ("prune.strategy", "json:/here", "json:/there"),
        ("prune.strategy", "checkpoint:/here", "checkpoint:/there"),
        ("prune.source", "/here", "/there"),
        ("evaluate.attacks.pgd20.steps", 20, 30),
        ("evaluate.run", ["fgsm"], ["pgd10"]),
    ],
)
def test_paths_and_the_evaluation_are_free(field, one, other):
    before, now = {**NOW, field: one}, {**NOW, field: other}
    assert identity.compare(before, now, {**DEFAULTS, field: one}).different == []


def test_another_kind_of_strategy_is_another_run():
    defaults = {**DEFAULTS, "prune.strategy": "uniform"}
    before = {**NOW, "prune.strategy": "json:/here"}
    for other in ("uniform", "checkpoint:/here"):
        found = identity.compare(before, {**NOW, "prune.strategy": other}, defaults)
        assert len(found.different) == 1


def test_a_section_is_free_by_its_whole_name_only():
    before, now = {**NOW, "evaluates": 1}, {**NOW, "evaluates": 2}
    assert identity.compare(before, now, DEFAULTS).different == ["evaluates=1, not 2"]
