"""The evaluation with AutoAttack and the security curve, and what it warns of."""

import json
import shutil

import numpy as np
import pytest
import runs

from harp_jax import checkpoint
from harp_jax.attacks import CW, FGSM, PGD, AutoAttack, Square
from harp_jax.config.sections import ConfigError, attacks_to_run, load_data
from harp_jax.evaluation import warnings
from harp_jax.evaluation.accuracy import Score
from harp_jax.run import experiment
from harp_jax.run import rows as measured
from harp_jax.workdir import checksums

EVALUATED = ("pretrain", "finetune")  # with other attacks than the finished run
PARTS = ("apgd-ce", "square")  # of AutoAttack


def finished(tmp_path_factory):
    """A copy of a finished run, and its configuration."""
    made = runs.finished(tmp_path_factory.getbasetemp())
    workdir = tmp_path_factory.mktemp("again") / "run"
    shutil.copytree(made, workdir)
    return workdir, runs.digits(**runs.FIELDS)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run, two networks of which are evaluated again with other attacks."""
    workdir, config = finished(tmp_path_factory)
    config.evaluate.stages = EVALUATED
    config.evaluate.run = ("autoattack", "fgsm")
    config.evaluate.curve = True
    config.evaluate.attacks.autoattack.unlock()
    small = config.evaluate.attacks.autoattack
    small.version, small.steps, small.queries = "+".join(PARTS), 4, 20
    with pytest.MonkeyPatch.context() as patch:  # each radius is a program
        patch.setattr(measured, "CURVE", (0.0, 2.0))
        experiment.run(config, workdir)
    return workdir


def evaluated(workdir):
    return [row for row in runs.results(workdir)["rows"] if row["stage"] in EVALUATED]


@pytest.mark.slow
def test_rows_hold_what_each_part_left(workdir):
    assert len(evaluated(workdir)) == len(EVALUATED)
    for row in evaluated(workdir):
        found = row["autoattack"]["autoattack"]
        after = list(found["after"].values())
        assert tuple(found["after"]) == ("natural", *PARTS)
        assert after == sorted(after, reverse=True)
        assert after[0] == pytest.approx(row["natural"])
        assert after[-1] == row["robust"]["autoattack"] <= row["robust"]["fgsm"]
        assert (found["images"], found["seed"]) == (row["images"], row["seed"]) == (359, 0)
        assert row["balanced"].keys() == {"natural", *runs.results(workdir)["attacks"]}
        assert abs(row["balanced"]["natural"] - row["natural"]) < 0.02
        assert 0 <= row["checks"]["largest_excess"] < 1e-6


def test_rows_count_what_is_correct_by_class(workdir):
    test = load_data(runs.digits(**runs.FIELDS)).test
    for row in evaluated(workdir):
        assert row["class_images"] == np.bincount(test.labels).tolist()
        accuracies = {"natural": row["natural"], **row["robust"]}
        assert row["correct"].keys() == accuracies.keys()
        for name, accuracy in accuracies.items():
            correct = np.array(row["correct"][name])
            assert correct.sum() / row["images"] == pytest.approx(accuracy, abs=1e-7)
            balanced = (correct / row["class_images"]).mean()
            assert balanced == pytest.approx(row["balanced"][name], abs=1e-6)
    assert "Accuracy by class" in (workdir / "report" / "index.html").read_text()


def test_an_earlier_row_without_numbers_by_class_stays_and_gets_those_of_new_attacks(
    tmp_path_factory,
):
    workdir, config = finished(tmp_path_factory)
    before = runs.results(workdir)
    for row in before["rows"]:
        del row["correct"], row["class_images"]
    (workdir / "results.json").write_text(json.dumps(before))
    config.stages, config.evaluate.stages = ("evaluate",), ("pretrain",)
    config.evaluate.run = ("fgsm", "again")
    config.evaluate.attacks.unlock()
    config.evaluate.attacks.again = config.evaluate.attacks.fgsm
    experiment.run(config, workdir)
    old, new = before["rows"][0], runs.results(workdir)["rows"][0]
    assert new["correct"].keys() == {"again"}
    assert sum(new["correct"]["again"]) == round(old["robust"]["fgsm"] * old["images"])
    assert new["natural"] == old["natural"]
    assert runs.results(workdir)["rows"][1:] == before["rows"][1:]


def test_the_curve_falls_from_the_natural_accuracy(workdir):
    for row in evaluated(workdir):
        robust = [point["robust"] for point in row["curve"]]
        assert robust[0] == row["natural"]
        assert robust == sorted(robust, reverse=True)
        assert [point["epsilon"] for point in row["curve"]] == pytest.approx([0.0, 0.2])


def test_progress_and_report_are_there(workdir):
    files = sorted(path.name for path in (workdir / "robustness").iterdir())
    assert files == [f"{stage}-autoattack.npz" for stage in sorted(EVALUATED)]
    assert "What each part of autoattack left" in (workdir / "report" / "index.html").read_text()


def test_what_was_measured_stays(workdir, tmp_path_factory):
    before = runs.results(runs.finished(tmp_path_factory.getbasetemp()))
    after = runs.results(workdir)
    assert set(after["attacks"]) == {"fgsm", "pgd10", "autoattack"}
    assert after["rows"][1] == before["rows"][1]  # of a network that was left out
    for old, new in zip(before["rows"][::2], evaluated(workdir), strict=True):
        assert old["robust"].items() <= new["robust"].items()
        assert old["balanced"].items() <= new["balanced"].items()
        assert old["checks"]["excess"].items() <= new["checks"]["excess"].items()
        assert old["correct"].items() <= new["correct"].items()
        changed = ("robust", "balanced", "correct", "checks", "autoattack", "curve", "seconds")
        changed = (*changed, "warnings")
        assert {name: new[name] for name in old if name not in changed} == {
            name: old[name] for name in old if name not in changed
        }
        assert new["seconds"] > old["seconds"]
    assert not (workdir / "results.previous.json").exists()
    assert "pgd10" in (workdir / "report" / "index.html").read_text()


@pytest.mark.slow
def test_the_networks_of_some_stages(tmp_path_factory):
    workdir, config = finished(tmp_path_factory)
    config.evaluate.run = ("fgsm",)
    (workdir / "results.json").unlink()
    (workdir / "report" / "index.html").unlink()
    after = {"finetune": ("finetune",), "pretrain": ("pretrain", "finetune"), "prune": runs.STAGES}
    for stage, rows in after.items():  # rows of earlier evaluations stay
        config.evaluate.stages = (stage,)
        config.stages = ("evaluate", "report") if stage == "prune" else ("evaluate",)
        experiment.run(config, workdir)
        assert [row["stage"] for row in runs.results(workdir)["rows"]] == list(rows)
    assert (workdir / "report" / "index.html").exists()
    shutil.rmtree(workdir / "finetune")
    config.stages, config.evaluate.stages = ("evaluate",), ("finetune",)
    with pytest.raises(ConfigError, match=r"complete in .* \(pretrain, prune\)"):
        experiment.run(config, workdir)
    before = runs.results(workdir)
    config.evaluate.run, config.evaluate.stages = (), ("pretrain",)
    experiment.run(config, workdir)
    previous = json.loads((workdir / "results.previous.json").read_text())
    assert checksums.bare(previous) == before
    assert runs.results(workdir)["rows"] == before["rows"][:2]  # the last network is gone


def test_attacks_follow_the_attack_of_training():
    config = runs.digits(**{"attack.epsilon": 0.25})
    config.evaluate.run = tuple(config.evaluate.attacks)
    assert {attack.epsilon for attack in attacks_to_run(config).values()} == {0.25}
    assert len(attacks_to_run(config)) == len(config.evaluate.attacks)
    config.evaluate.attacks.pgd20.epsilon = 0.5  # and not the other way
    assert config.attack.epsilon == 0.25
    found = {attack.epsilon for name, attack in attacks_to_run(config).items() if name != "pgd20"}
    assert found == {0.25}


def changed(workdir, change):
    """Changes the last layer of the pretrained network."""
    network = checkpoint.load(workdir / "pretrain")
    metadata = network.pop("metadata")
    change(network["params"]["dense2"])
    checkpoint.save_result(workdir / "pretrain", network, metadata)


def test_logits_that_are_not_finite_fail_the_evaluation(tmp_path_factory, caplog):
    workdir, config = finished(tmp_path_factory)

    def change(layer):
        layer["bias"][3] = np.nan

    changed(workdir, change)
    config.stages, config.evaluate.run = ("evaluate",), ("fgsm",)
    said = r"^pretrain, natural: the logits of 359 of 359 images are not finite; allowed"
    with pytest.raises(ValueError, match=said):
        experiment.run(config, workdir)
    gone = f"{workdir}/results.json: is gone; all networks are measured again"
    assert gone not in caplog.messages
    (workdir / "results.json").unlink()
    with pytest.raises(ValueError, match=said):
        experiment.run(config, workdir)
    assert gone in caplog.messages


@pytest.mark.slow
def test_large_logits_hide_gradients_of_the_cross_entropy_alone(tmp_path_factory):
    workdir, config = finished(tmp_path_factory)
    config.stages, config.evaluate.stages = ("evaluate", "report"), ("pretrain",)
    config.evaluate.run = ("fgsm", "cw20")
    experiment.run(config, workdir)
    before = runs.results(workdir)["rows"][0]
    assert before["checks"]["zero_gradients"] == {"fgsm": 0.0, "pgd10": 0.0, "cw20": 0.0}
    assert before["warnings"] == []

    def change(layer):
        layer["kernel"] *= 1e5
        layer["bias"] *= 1e5

    changed(workdir, change)
    experiment.run(config, workdir)
    after = runs.results(workdir)["rows"][0]
    assert after["natural"] == before["natural"]
    assert after["robust"]["cw20"] == pytest.approx(before["robust"]["cw20"], abs=0.02)
    assert after["robust"]["fgsm"] > before["robust"]["fgsm"] + 0.1
    assert after["checks"]["zero_gradients"]["cw20"] == 0.0
    share = after["checks"]["zero_gradients"]["fgsm"]
    assert share > 0.5
    (said,) = after["warnings"]
    assert said.startswith(f"fgsm: the gradient of the loss 'ce' is zero on {share:.0%}")
    assert f"is zero on {share:.0%}" in (workdir / "report" / "index.html").read_text()


def row(**fields):
    after = {"natural": 0.9, "apgd-ce": 0.6, "apgd-t": 0.55, "square": 0.55}
    found = {"after": after, "images": 200, "zero_gradients": 0.0, "deterministic": True}
    measured = {
        "robust": {"aa": 0.55, "pgd100": 0.61},
        "checks": {"largest_excess": 1e-7},
        "autoattack": {"aa": {**found, **fields.pop("aa", {})}},
        "curve": [{"epsilon": 0.1 * n, "robust": 0.9 - 0.2 * n} for n in range(4)],
    }
    return {**measured, **fields}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"checks": {"largest_excess": None}}, "no numbers"),
        ({"checks": {"largest_excess": 0.01}}, "0.01 outside"),
        (
            {"aa": {"after": {"natural": 0.9, "apgd-ce": 0.6, "apgd-t": 0.55, "square": 0.535}}},
            "broke 3 of 200 images",
        ),
        ({"aa": {"zero_gradients": 0.3}}, "zero on 30% of the images"),
        ({"aa": {"zero_gradients": 0.1}}, None),
        *[
            ({"checks": {"largest_excess": 0.0, "zero_gradients": {name: share}}}, said)
            for name, share, said in [
                (
                    "pgd100",
                    0.11,
                    "pgd100: the gradient of the loss 'ce' is zero on 11%",
                ),
                ("pgd100", 0.1, None),
                ("cw", 0.5, "cw: the gradient of the loss 'margin' is zero on 50%"),
                ("fgsm", 1.0, "fgsm: the gradient of the loss 'ce' is zero on 100%"),
                ("square", 1.0, None),
                ("aa", 0.5, None),  # said of its parts
            ]
        ],
        ({"aa": {"deterministic": False}}, "two forward passes differ"),
        ({"robust": {"aa": 0.55, "pgd100": 0.7}}, "pgd100: leaves 10.0% more"),
        ({"robust": {"aa": 0.55, "in_l2": 0.7, "of_margins": 0.7}}, None),  # not APGD-CE's task
        (
            {"curve": [{"epsilon": 0.1, "robust": 0.5}, {"epsilon": 0.2, "robust": 0.6}]},
            "higher at epsilon 0.2 (60.00%) than at 0.1 (50.00%)",
        ),
    ],
)
def test_each_doubt_is_said(fields, said):
    attacks = {
        "aa": AutoAttack(0.1),
        "pgd100": PGD(0.1, 0.01, steps=100),
        "in_l2": PGD(0.1, 0.01, steps=100, norm="l2"),
        "of_margins": PGD(0.1, 0.01, steps=100, objective="margin"),
        "cw": CW(0.1, 0.01),
        "fgsm": FGSM(0.1),
        "square": Square(0.1),
    }
    found = warnings(row(**fields), attacks, 10)
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_a_balanced_score_is_the_mean_over_the_classes_that_occur():
    score = Score.of(np.array([9, 1, 0]), np.array([10, 2, 0]))
    assert score[:3] == (pytest.approx(10 / 12), pytest.approx((0.9 + 0.5) / 2), 0.0)
    assert (score.correct, score.examples) == ((9, 1, 0), (10, 2, 0))
