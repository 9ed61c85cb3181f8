"""Tables that cannot be right are refused in a line, before anything is drawn or computed."""

import sys

import pytest

from experiments import bootstrap, collect, figures, held_out, outcomes, sizes, tables
from experiments.matrix import DENSE, Matrix

ROWS = [
    {
        "method": method,
        "target": target,
        "seed": "0",
        "kept": "9",
        "natural": "0.8",
        "pgd20": "0.5",
        "autoattack": "0.5",
        "validation_robust": "0.6",
        "kept_per_layer": kept,
    }
    for method, target, kept in (
        (DENSE, "1", "144 4608 18432 73728 1280"),
        ("a", "0.2", "1 2 3 4 5"),
    )
]


@pytest.fixture
def written(tmp_path):
    def write(rows, name="toy_matrix.csv"):
        tables.write(tmp_path / name, rows)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [
        ("natural", "nan", "natural='nan' in the row of a, 0.2, 0; allowed are numbers in [0, 1]"),
        (
            "natural",
            "95.3",
            "natural='95.3' in the row of a, 0.2, 0; allowed are numbers in [0, 1]",
        ),
        ("autoattack", "-0.1", "autoattack='-0.1'"),
        ("target", "0", "target='0' in the row of a, 0, 0; allowed are numbers in (0, 1]"),
        ("seed", "1.5", "seed='1.5' in the row of a, 0.2, 1.5; allowed are whole numbers"),
        ("kept_per_layer", "1 2 x 4 5", "kept_per_layer='1 2 x 4 5' in the row of a, 0.2, 0"),
        ("kept_per_layer", "1 2", "has rows of 2 and 5 layers; allowed are those of one network"),
    ],
)
@pytest.mark.parametrize("script", [figures, sizes])
def test_values_that_cannot_be(column, value, allowed, script, written, monkeypatch):
    path = written([ROWS[0], {**ROWS[1], column: value}])
    monkeypatch.setattr(sys, "argv", ["script", str(path)])
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert str(caught.value).startswith(f"error: {path}: ")
    assert allowed in str(caught.value)


def test_two_rows_of_a_cell(written):
    with pytest.raises(SystemExit, match=r"has two rows of a, 0\.2, 0; allowed is one"):
        figures.checked(written([*ROWS, ROWS[1]]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], {**ROWS[1], "kept_per_layer": "1 2 3 4 1281"}], "'1 2 3 4 1281' of a;"),
        ([{**ROWS[0], "kept_per_layer": "9 9 9 9 9"}, ROWS[1]], "'9 9 9 9 9' of dense;"),
        ([{**row, "kept_per_layer": "1 2 3"} for row in ROWS], "'1 2 3' of dense; --network=cnn"),
        ([{key: row[key] for key in row if key != "autoattack"} for row in ROWS], "'autoattack'"),
    ],
)
def test_sizes_of_another_network(rows, said, written, monkeypatch):
    path = written(rows)
    monkeypatch.setattr(sys, "argv", ["sizes", str(path)])
    with pytest.raises(SystemExit) as caught:
        sizes.main()
    assert said in str(caught.value)
    assert not path.with_name("toy_sizes.csv").exists()


def test_sizes_of_a_table_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sizes", str(tmp_path / "none_matrix.csv")])
    with pytest.raises(SystemExit, match="is not there; allowed are tables"):
        sizes.main()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            [".000"],
            "the outcomes of a, 0.2, 0 have an accuracy of 0.2500; allowed is that of its row, 0.5",
        ),
        (["..00", "..00"], "has two rows of a, 0.2, 0; allowed is one"),
    ],
)
def test_outcomes_that_contradict_the_table(texts, said, written, monkeypatch, capsys):
    matrix = Matrix("configs/digits.py", {}, {"a": {}}, (0.2,))
    path = written(ROWS)
    named = {row["method"]: {key: row[key] for key in tables.KEY} for row in ROWS}
    lines = [{**named["a"], outcomes.COLUMN: text} for text in texts]  # dots withstand all
    written(lines, "toy_outcomes.csv")
    monkeypatch.setattr(bootstrap.compare, "load", lambda path: matrix)
    arguments = ["bootstrap", "--matrix=toy.py", f"--results={path.parent}", "--against=a"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="2"):
        bootstrap.main()
    assert said in capsys.readouterr().err


def test_two_runs_of_one_name_are_refused(tmp_path, monkeypatch):
    folders = [str(tmp_path / parent / "run") for parent in ("one", "two")]
    monkeypatch.setattr(sys, "argv", ["held_out", *folders])
    with pytest.raises(SystemExit, match=r"run: names two runs; allowed are runs of different"):
        held_out.main()


def test_epochs_without_a_configuration(tmp_path, monkeypatch, capsys):
    (tmp_path / "prune").mkdir()
    (tmp_path / "prune" / collect.files.METRICS).write_text("{}\n")
    monkeypatch.setattr(sys, "argv", ["collect", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        collect.main()
    assert f"there is no {tmp_path / collect.files.CONFIG}" in capsys.readouterr().err
