"""Bootstrap intervals over images and seeds."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import bootstrap, compare, outcomes
from experiments.bootstrap import difference, interval, means
from experiments.matrix import DENSE, Matrix, cells
from experiments.tables import read, write
from harp_jax.evaluation import ROBUST

few = settings(max_examples=20, deadline=None, derandomize=True)
DRAWS = 300


@st.composite
def withstood(draw, images=40):
    """Outcomes of one to four networks on some images, often the same on all."""
    seeds, share = draw(st.integers(1, 4)), draw(st.floats(0, 1))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    return random.random((seeds, images)) < share


@few
@given(withstood())
def test_an_interval_has_its_mean_and_lies_in_a_wider_one(found):
    inner, outer = (interval(found, DRAWS, level) for level in (0.5, 0.95))
    assert 0 <= outer.low <= inner.low <= inner.high <= outer.high <= 1
    assert inner.mean == outer.mean == found.mean()
    assert outer.low <= outer.mean <= outer.high
    if found.all() or not found.any():
        assert outer.low == outer.high == outer.mean


@few
@given(withstood())
def test_wrong_answers_have_the_mirrored_interval(found):
    one, other = interval(found, DRAWS), interval(~found, DRAWS)
    np.testing.assert_allclose(
        [one.mean, one.low, one.high], [1 - other.mean, 1 - other.high, 1 - other.low], atol=1e-12
    )


@few
@given(withstood(), st.data())
def test_a_difference_is_opposite_the_other_way_round(one, data):
    other = data.draw(withstood().filter(lambda found: len(found) == len(one)))
    there, back = difference(one, other, DRAWS), difference(other, one, DRAWS)
    np.testing.assert_allclose(there, [-back.mean, -back.high, -back.low], atol=1e-12)


@few
@given(withstood())
def test_networks_do_not_differ_from_themselves(found):
    assert difference(found, found, DRAWS) == (0, 0, 0)


def test_one_network_has_the_binomial_interval():
    found = np.arange(1000)[None] < 700
    of = interval(found, 4000)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert of.low == pytest.approx(0.7 - half, abs=0.003)
    assert of.high == pytest.approx(0.7 + half, abs=0.003)


def test_variance_adds_that_of_the_images_and_that_of_the_seeds():
    shares = np.array([0.5, 0.6, 0.7])  # of disjoint luck: seeds differ by much
    found = np.arange(2000)[None] < 2000 * shares[:, None]
    variance = means(found, 4000).var()
    over_images = found.mean(0).var() / 2000
    assert variance == pytest.approx(shares.var(ddof=1) / 3 + over_images, rel=0.15)


def test_common_images_make_a_difference_narrower():
    random = np.random.default_rng(0)
    hard = random.random((1, 2000))
    one, other = hard < 0.6, hard < 0.62
    both = difference(one, other)
    assert both.high - both.low < 0.3 * (interval(one).high - interval(one).low)
    assert both.high < 0
    with pytest.raises(ValueError, match=r"outcomes=\(1, 5\): allowed are as many seeds and"):
        difference(one, other[:, :5])


MATRIX = Matrix(
    base="configs/digits.py",
    fields={},
    methods={"a": {}, "b": {}},
    targets=(0.1,),
    seeds=(0, 1),
    dense={"longer": {"pretrain.epochs": 9}},
)


def test_the_table_has_what_is_measured(tmp_path, monkeypatch, capsys):
    random, lines = np.random.default_rng(0), []
    for cell in cells(MATRIX):
        if cell.method in ("a", "b", DENSE) and (cell.method, cell.seed) != ("b", 1):
            text = outcomes.to_text(np.where(random.random(50) < 0.5, ROBUST, 0))
            lines.append({**compare.named(cell), outcomes.COLUMN: text})
    monkeypatch.setattr(compare, "load", lambda path: MATRIX)
    arguments = ["bootstrap", "--matrix=toy.py", f"--results={tmp_path}", "--against=a"]

    def refused():
        with pytest.raises(SystemExit, match="2"):
            bootstrap.main()
        return capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", arguments)
    assert "toy_outcomes.csv: has no outcomes of the matrix" in refused()
    write(tmp_path / "toy_outcomes.csv", lines)
    (text,) = (line[outcomes.COLUMN] for line in lines if line["method"] == "b")
    known = {"method": "b", "target": "0.1", "autoattack": str(text.count(".") / 50)}
    write(tmp_path / "toy_matrix.csv", [{**known, "seed": seed} for seed in "01"])
    bootstrap.main()
    assert "toy_outcomes.csv: b, 0.1, 1\n" in capsys.readouterr().out
    rows = read(tmp_path / "toy_intervals.csv")
    seeds = [(DENSE, "0 1"), ("a", "0 1"), ("b", "0")]
    assert [(row["method"], row["seeds"]) for row in rows] == seeds
    assert rows[2]["minus a, seeds"] == rows[2]["minus dense, seeds"] == "0"
    assert [row["minus a"] for row in rows[:2]] == ["", ""]
    shares = {(line["method"], line["seed"]): line[outcomes.COLUMN].count(".") for line in lines}
    for other in ("a", DENSE):
        expected = 2 * (shares["b", "0"] - shares[other, "0"])  # in %, of 50 images
        assert float(rows[2][f"minus {other}"]) == pytest.approx(expected, abs=0.011)
    assert rows[0]["minus dense"] == ""
    monkeypatch.setattr(sys, "argv", [*arguments[:-1], "--against=c"])
    assert "--against=c: allowed are methods with outcomes: ['dense', 'a', 'b']" in refused()
    monkeypatch.setattr(sys, "argv", arguments)
    for text, said in (
        ("..0", "a_0.1_1: images=3: allowed are as many as of the others, 50"),
        ("." * 49 + "-", "a_0.1_1: broken_by: '-': allowed are 0 to 9, a to z and ."),
        ("", "a_0.1_1: broken_by: nothing: allowed are"),
    ):
        wrong = {"method": "a", "target": "0.1", "seed": "1", outcomes.COLUMN: text}
        write(tmp_path / "toy_outcomes.csv", [*lines, wrong])
        assert f"{tmp_path}/toy_outcomes.csv: {said}" in refused()
    (tmp_path / "toy_outcomes.csv").write_text("method,target,seed\na,0.1,0\n")
    with pytest.raises(SystemExit, match="has no column 'broken_by'"):
        bootstrap.main()


@few
@given(st.lists(st.integers(ROBUST, 35), min_size=1))
def test_outcomes_are_text_and_back(parts):
    text = outcomes.to_text(np.array(parts, np.int8))
    assert len(text) == len(parts)
    np.testing.assert_array_equal(outcomes.from_text(text), parts)


def test_a_comparison_keeps_what_broke_each_image(tmp_path):
    dense, pruned = (
        next(cell for cell in cells(MATRIX) if cell.method == name) for name in (DENSE, "a")
    )
    robustness = tmp_path / "robustness"
    robustness.mkdir()
    for stage, cell in (("pretrain", dense), ("finetune", pruned)):
        assert compare.outcome(cell, tmp_path) == []  # not measured, or still under attack
        np.savez(robustness / f"{stage}-autoattack.npz", broken_by=[0, ROBUST, 4])
        rows = [{"stage": stage, "robust": {"autoattack": 1 / 3}}]
        for run, expected in (([], []), (["autoattack"], ["0.4"])):  # one that others measured
            found = {"rows": rows, "config": {"evaluate": {"run": run}}}
            (tmp_path / "results.json").write_text(json.dumps(found))
            lines = [{**compare.named(cell), outcomes.COLUMN: text} for text in expected]
            assert compare.outcome(cell, tmp_path) == lines
