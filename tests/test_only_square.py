"""More gradient steps at the images that only Square broke."""

import json
import shutil
import sys

import numpy as np
import pytest
import runs

from experiments import square
from experiments.tables import read

ROBUST, SQUARE = -1, 4


@pytest.fixture
def workdir(tmp_path, tmp_path_factory):
    """A finished run, with an outcome of AutoAttack in which Square alone broke some images."""
    finished = runs.finished(tmp_path_factory.getbasetemp())
    workdir = tmp_path / "run"
    shutil.copytree(finished / "finetune", workdir / "finetune")
    shutil.copy(finished / "config.json", workdir)

    def write(broken_by):
        (workdir / "robustness").mkdir(exist_ok=True)
        np.savez(workdir / "robustness" / "finetune-autoattack.npz", broken_by=np.array(broken_by))
        rows = {"rows": [{"stage": "finetune", "robust": {"autoattack": 0.5}}]}
        (workdir / "results.json").write_text(json.dumps(rows))
        return workdir

    return write


def test_what_pgd_finds_is_counted(workdir, monkeypatch):
    monkeypatch.setattr(square, "RESTARTS", 2)
    broken_by = np.full(40, ROBUST)
    broken_by[[3, 5, 8, 13, 21]] = SQUARE
    row = square.again(workdir(broken_by))
    assert (row["images"], row["only square"]) == (40, 5)
    assert max(row["ce"], row["margin"]) <= row["either"] <= 5
    assert row["either"] > 0  # the network is hardly robust
    monkeypatch.setattr(square, "STEPS", 1)
    monkeypatch.setattr(square, "RESTARTS", 1)
    assert square.again(workdir(broken_by))["either"] <= row["either"]


def test_a_run_without_such_images_has_a_row_of_zeros(workdir, tmp_path, monkeypatch, capsys):
    run = workdir([ROBUST, 0, 1, 2, 3])
    out = tmp_path / "square.csv"
    monkeypatch.setattr(sys, "argv", ["square", str(run), f"--out={out}"])
    square.main()
    (row,) = read(out)
    assert [row[name] for name in ("only square", "ce", "margin", "either")] == ["0"] * 4
    assert "'only square': 0" in capsys.readouterr().out


def test_squares_place_is_that_in_the_versions_of_the_run(workdir):
    """Of other parts or none is said, of 'plus' FAB's images are not taken for Square's."""
    run = workdir([3, 3, ROBUST])
    record = json.loads((run / "config.json").read_text())
    settings = record["config"]["evaluate"]["attacks"]["autoattack"]

    def again(version):
        settings["version"] = version
        (run / "config.json").write_text(json.dumps(record))
        return square.again(run)

    assert again("standard")["only square"] == 0
    assert again("apgd-ce+apgd-t+fab-t+apgd-dlr+square")["only square"] == 0
    with pytest.raises(SystemExit, match="allowed are attacks with square"):
        again("rand")


def test_an_outcome_that_cannot_be_read_is_named(workdir):
    run = workdir([ROBUST])
    (run / "robustness" / "finetune-autoattack.npz").write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"error: .*autoattack.npz: cannot be read"):
        square.again(run)


def test_a_run_without_autoattack_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="allowed are workdirs with an outcome of AutoAttack"):
        square.again(tmp_path)
