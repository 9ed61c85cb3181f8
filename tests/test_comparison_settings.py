"""Rows and networks of other settings are not mixed into a comparison."""

import json
import sys

import pytest

from experiments import compare, settings, tables
from experiments.matrix import Matrix
from experiments.workers import StoppedError
from harp_jax.workdir import files

BASE = "configs/digits.py"
MATRIX = Matrix(BASE, {"attack.steps": 3}, {"harp": {}, "hydra": {}}, (0.2,))
ROW = {"method": "harp", "target": 0.2, "seed": 0}


@pytest.fixture
def table(tmp_path):
    return tmp_path / "toy_matrix.csv"


def check(table, **given):
    given = {name.replace("__", "."): value for name, value in given.items()}
    settings.check_table(table, BASE, {**MATRIX.fields, **given}, given)


def test_a_table_goes_on_with_its_settings_alone(table):
    check(table, pretrain__epochs="3")
    check(table, pretrain__epochs="2")  # no row yet
    tables.add(table, [ROW])
    check(table, pretrain__epochs="2", data__name="npz:elsewhere.npz")
    with pytest.raises(SystemExit, match=r"rows of pretrain.epochs=2, now it is None; allowed is"):
        check(table)
    with pytest.raises(SystemExit, match=r"rows of attack.steps=3, now it is 4"):
        check(table, pretrain__epochs="2", attack__steps="4")


def test_what_cannot_be_read_is_said_in_a_line(table):
    with pytest.raises(SystemExit, match=r"^error: .*nowhere"):
        settings.check_there("configs/nowhere.py", {})
    tables.add(table, [ROW])
    table.with_name("toy_settings.json").write_text('{"base')
    with pytest.raises(SystemExit, match=r"toy_settings.json: is damaged: "):
        check(table)


def test_a_published_table_takes_no_other_settings(table):
    tables.add(table, [ROW])
    check(table)
    check(table, data__name="npz:elsewhere.npz")
    with pytest.raises(SystemExit, match=r"rows have --set=pretrain.epochs=1; allowed is"):
        check(table, pretrain__epochs="1")


def test_a_field_that_is_not_there_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    arguments = [f"--runs={tmp_path}", f"--results={tmp_path}", "--set=pretrain.epoks=77"]
    monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", *arguments])
    with pytest.raises(SystemExit, match=r"--set=pretrain.epoks: .* mean pretrain.epochs"):
        compare.main()
    settings.check_there(BASE, {"evaluate.attacks.mine.steps": "3", "own.depth": "3"})


@pytest.mark.parametrize(
    ("field", "value", "stage", "refused"),
    [
        ("pretrain.epochs", "4", "pretrain", True),
        ("pretrain.epochs", "3", "pretrain", False),
        ("pretrain.epochs", 3.0, "pretrain", False),
        ("attack.epsilon", "8/255", "pretrain", True),
        ("prune.epochs", 9, "pretrain", False),
        ("prune.epochs", 9, "prune", True),
        ("finetune.epochs", 9, "prune", False),
        ("evaluate.run", ("fgsm",), "prune", False),
        ("devices", 1, "prune", False),
        ("data.mean", (0.5, 0.25), "prune", False),
        ("data.mean", "(0.5, 0.2)", "prune", True),
        ("data.name", "npz:elsewhere.npz", "prune", False),
        ("a.newer.field", 1, "prune", False),
    ],
)
def test_networks_to_start_from_have_the_fields(field, value, stage, refused, tmp_path):
    config = {"pretrain": {"epochs": 3}, "prune": {"epochs": 2}, "finetune": {"epochs": 1}}
    config |= {"attack": {"epsilon": 0.1}, "data": {"name": "digits", "mean": [0.5, 0.25]}}
    config |= {"devices": 2, "evaluate": {"run": ["pgd10"]}}
    (tmp_path / files.CONFIG).write_text(json.dumps({"config": config}))
    if refused:
        with pytest.raises(SystemExit, match=rf"was trained with {field}=.*; allowed is another"):
            settings.check_run(tmp_path, stage, {field: value})
    else:
        settings.check_run(tmp_path, stage, {field: value})


def test_a_cell_does_not_start_from_a_network_of_other_settings(tmp_path, monkeypatch):
    begun = []

    def run(command, clock):
        workdir = tmp_path / "dense_1_0"
        begun.append(command)
        if len(begun) > 1:
            raise StoppedError
        (workdir / "pretrain" / files.RESULT).mkdir(parents=True)
        epochs = next(each for each in command if "pretrain.epochs" in each).split("=")[1]
        config = {"pretrain": {"epochs": int(epochs)}}
        (workdir / files.CONFIG).write_text(json.dumps({"config": config}))

    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    monkeypatch.setattr(compare, "execute", run)
    monkeypatch.setattr(compare, "epochs", lambda cell, workdir: [compare.named(cell)])
    monkeypatch.setattr(compare, "result", lambda cell, workdir: compare.named(cell))

    def main(results, *more):
        arguments = [f"--runs={tmp_path}", f"--results={tmp_path / results}", *more]
        monkeypatch.setattr(sys, "argv", ["compare", "--matrix=toy.py", *arguments])
        compare.main()

    main("one", "--set=pretrain.epochs=1", "--only=dense")
    with pytest.raises(SystemExit, match=r"trained with pretrain.epochs=1, now it is 3"):
        main("other", "--set=pretrain.epochs=3", "--only=harp")
    assert len(begun) == 1
    main("one", "--set=pretrain.epochs=1", "--only=harp")
    assert len(begun) == 2
