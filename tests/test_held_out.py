"""Networks measured on training images that their runs have not used."""

import shutil
import sys

import numpy as np
import pytest
import runs

from experiments import held_out
from experiments.compare import read
from harp_jax.config.sections import load_data

FIELDS = {"data.validation_examples": 50, "data.train_examples": 300}


def rows(split):
    return {image.tobytes() for image in np.asarray(split.images)}


def test_the_images_are_in_no_split_of_the_run():
    config = runs.digits(**FIELDS)
    found, dataset = held_out.unused(config, 400), load_data(config)
    assert len(found) == 400
    for split in (dataset.train, dataset.validation, dataset.test):
        assert len(rows(found) & rows(split)) <= 2  # a few digits are there twice
    assert rows(held_out.unused(config, 100)) <= rows(found)
    assert config.to_dict()["data"]["train_examples"] == 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**FIELDS, "data.train_examples": None}, "allowed are runs that leave images"),
        ({**FIELDS, "data.train_examples": 1200}, "--images=500: data.validation_examples=1750"),
    ],
)
def test_runs_that_leave_too_few_images_are_refused(fields, message):
    with pytest.raises(SystemExit, match=message):
        held_out.unused(runs.digits(**fields), 500)


def test_a_row_has_the_accuracies_of_the_last_network(tmp_path, tmp_path_factory, monkeypatch):
    finished = runs.finished(tmp_path_factory.getbasetemp())
    shutil.copytree(finished / "finetune", tmp_path / "run" / "finetune")
    shutil.copy(finished / "config.json", tmp_path / "run")
    monkeypatch.setattr(held_out, "get_config", lambda workdir: runs.digits(**FIELDS))
    out = tmp_path / "rows.csv"
    arguments = [str(tmp_path / "run"), "--images=200", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["held_out", *arguments])
    held_out.main()
    (row,) = read(out)
    assert (row["stage"], row["images"]) == ("finetune", "200")
    assert 50 < float(row["robust"]) <= float(row["natural"]) < 100
    monkeypatch.setattr(sys, "argv", ["held_out", str(tmp_path)])
    with pytest.raises(SystemExit, match="allowed are workdirs with a finished stage"):
        held_out.main()
