"""Networks measured on training images that their runs have not used."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import runs

from experiments import finished, held_out
from experiments.tables import by_run, read
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
        (
            {**FIELDS, "data.train_examples": 1200},
            "--images=500, after 1250 that are used: data",
        ),
    ],
)
def test_runs_that_leave_too_few_images_are_refused(fields, message):
    with pytest.raises(SystemExit, match=message):
        held_out.unused(runs.digits(**fields), 500)


def test_a_row_has_the_accuracies_of_the_last_network(tmp_path, tmp_path_factory, monkeypatch):
    finished = runs.finished(tmp_path_factory.getbasetemp())
    shutil.copytree(finished / "finetune", tmp_path / "run" / "finetune")
    shutil.copy(finished / "config.json", tmp_path / "run")
    monkeypatch.setattr(held_out, "data_of", lambda workdir: (runs.digits(**FIELDS), None))
    out = tmp_path / "rows.csv"
    arguments = [str(tmp_path / "run"), "--images=200", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", ["held_out", *arguments])
    held_out.main()
    (row,) = read(out)
    assert (row["stage"], row["images"]) == ("finetune", "200")
    assert 50 < float(row["robust"]) <= float(row["natural"]) < 100
    shutil.rmtree(tmp_path / "run" / "finetune")
    monkeypatch.setattr(sys, "argv", ["held_out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="allowed are workdirs with a finished stage"):
        held_out.main()


def test_no_test_image_is_taken_where_a_run_chooses_on_them():
    config = runs.digits(**{**FIELDS, "data.select_on": "test", "data.validation_examples": 0})
    found = rows(held_out.unused(config, 200))
    assert len(found & rows(load_data(config).test)) <= 2
    assert config.data.select_on == "test"


def test_networks_that_started_from_one_with_other_images_are_refused(tmp_path):
    """Those may be just the images that this run has not used."""
    content = {"config": {}, "seed": 0, "versions": {}, "devices": ""}
    dense = tmp_path / "dense" / "pretrain"
    for name, train, source in (("dense", "b", ""), ("pruned", "a", str(dense))):
        (tmp_path / name / "pretrain").mkdir(parents=True)
        run = {**content, "sources": {"prune.source": {"given": source, "digest": "c"}}}
        digests = {"train": train, "validation": "a"}
        run["data"] = {"name": "digits", "version": None, "digests": digests}
        (tmp_path / name / "config.json").write_text(json.dumps(run))
    finished.check_same_images(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"prune.source='.*dense/pretrain' has seen other images"):
        finished.check_same_images(tmp_path / "pruned")


def test_rows_are_kept_when_a_later_run_fails(tmp_path):
    out, called = tmp_path / "new" / "rows.csv", []

    def measure(run):
        called.append(run)
        if run.name == "b":
            raise ValueError("b: allowed are runs")
        return {"run": run.name}

    with pytest.raises(SystemExit, match="error: b: allowed are runs"):
        by_run([pathlib.Path("a"), pathlib.Path("b")], measure, out)
    assert read(out) == [{"run": "a"}]
    called.clear()
    with pytest.raises(SystemExit, match="allowed are files that can be written"):
        by_run([pathlib.Path("a")], measure, tmp_path)
    assert not called  # said before the work


def test_rows_of_other_runs_stay_in_the_table(tmp_path):
    out = tmp_path / "rows.csv"
    a, b, c = map(pathlib.Path, "abc")
    by_run([a, b], lambda run: {"run": run.name, "natural": 1}, out)
    by_run([b, c], lambda run: {"run": run.name, "natural": 2}, out)
    assert [tuple(row.values()) for row in read(out)] == [
        ("a", "1"),
        ("b", "2"),
        ("c", "2"),
    ]


def test_a_folder_without_a_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["held_out", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"none'.* has no config.json"):
        held_out.main()
