"""Trials of the fault campaign; `python -m tests.faults` runs many more."""

import faults
import numpy as np
import pytest
from fault_trials import LOST, SAME, WRONG

from harp_jax.checkpoint import reading, record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pytestconfig):
    folder = tmp_path_factory.mktemp("faults")
    if pytestconfig.pluginmanager.hasplugin("cacheprovider"):  # compiled once, not every session
        (folder / "programs").symlink_to(pytestconfig.cache.mkdir("programs_of_faults"))
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return faults.undisturbed(folder)


@pytest.mark.parametrize("name", ["kill", "terminate", "flip"])
def test_a_trial_ends_well(name, folder, whole):
    row = faults.run_trial(folder, whole, seed=0, number=0, names=[name])
    assert row["outcome"] not in (LOST, WRONG), row
    assert row["faults"].startswith(f"{name} (")
    assert not (folder / "trial-0-0").exists()


def change_what_is_read():
    """Makes a run read other weights than were saved, and see no difference."""
    read = reading._read_tree

    def other(folder, **options):
        tree = read(folder, **options)
        if folder.name == "variables":
            tree["params"]["dense2"]["bias"] = tree["params"]["dense2"]["bias"] + np.float32(1e-3)
        return tree

    reading._read_tree, record.problem = other, lambda *_: None


def test_a_silent_change_is_noticed(folder, whole):
    row = faults.run_trial(folder, whole, 0, 1, ["kill"], prepare=change_what_is_read)
    assert row["outcome"] == WRONG, row
    assert "other arrays" in row["why"]
    assert float(row["largest"]) > 1e-6
    assert (folder / "trial-0-1").is_dir()


def test_trials_depend_on_their_number_alone():
    drawn = [faults.draw(0, number) for number in range(200)]
    assert drawn == [faults.draw(0, number) for number in range(200)]
    assert drawn != [faults.draw(1, number) for number in range(200)]
    assert {name for names in drawn for name in names} == set(faults.FAULTS)
    assert {len(names) for names in drawn} == {1, 2, 3}


def test_a_campaign_goes_on_after_the_rows_it_has(folder, whole, monkeypatch, capsys):
    tried = []

    def trial(_, __, seed, number):
        tried.append(number)
        outcome = LOST if number == 1 else SAME
        texts = (str(seed), str(number), "kill (x); flip (y)", outcome, "0.0e+00", "1", "1.0", "")
        return dict(zip(faults.COLUMNS, texts, strict=True))

    monkeypatch.setattr(faults, "run_trial", trial)
    faults.campaign(folder, 5, range(2))
    rows = faults.campaign(folder, 5, range(3))
    assert tried == [0, 1, 2]
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert "| flip | 2 | 0 | 0 | 1 | 0 | 0 |" in faults.summary(rows)
    monkeypatch.setattr("sys.argv", ["faults", f"--workdir={folder}", "--seed=5", "--trials=3"])
    with pytest.raises(SystemExit) as left:
        faults.main()
    assert left.value.code == 1
