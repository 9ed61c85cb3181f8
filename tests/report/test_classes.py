"""Accuracy by class on the page of a run."""

import pytest
import reports

from harp_jax.report import classes

pytestmark = pytest.mark.usefixtures("quick_figures")


def counted(**changes):
    """Rows of three classes, of which the second has no images."""
    tree = reports.results()
    natural = {"pretrain": [490, 0, 490], "prune": [480, 0, 480], "finetune": [500, 0, 471]}
    attacked = {"pretrain": [450, 0, 450], "prune": [440, 0, 420], "finetune": [490, 0, 392]}
    for row in tree["rows"]:
        stage = row["stage"]
        row["class_images"] = [500, 0, 500]
        row["correct"] = {"natural": natural[stage], "pgd20": attacked[stage]}
        row |= changes
    return tree


def test_the_table_of_the_page(bare):
    reports.write_json(bare / "results.json", counted())
    text = reports.text_of(reports.page_of(bare))
    assert "dense (pretrain) pruned finetuned class test images natural pgd20 natural" in text
    assert "0 500 98.0 % 90.0 % 96.0 % 88.0 % 100.0 % 98.0 %" in text
    assert "2 500 98.0 % 90.0 % 96.0 % 84.0 % 94.2 % 78.4 %" in text
    assert "under pgd20, the attack that leaves the last network the least." in text
    assert "the best is class 0 (98.0 %), the worst class 2 (78.4 %)" in text
    assert "standard error of up to 1.8 points" in text  # sqrt(0.784 * 0.216 / 500)


def test_rows_without_numbers_by_class_have_no_table(bare):
    assert "Accuracy by class" not in reports.page_of(bare)
    assert classes.table(counted(correct={})["rows"]) is None
    assert classes.table(counted(class_images=[0, 0, 0])["rows"]) is None
    assert classes.table(counted(class_images=[1])["rows"]) is None


def test_rows_of_other_networks_are_left_out():
    rows = counted()["rows"]
    del rows[0]["correct"]
    rows[1]["class_images"] = [400, 0, 600]
    assert classes.table(rows).stages == ["finetune"]


def test_without_an_attack_by_class_natural_accuracy_is_left():
    rows = counted(correct={"natural": [500, 0, 400]})["rows"]
    found = classes.table(rows)
    assert found.kinds == ["natural"]
    assert found.worst == (2, 500, ["80.0 %"] * 3)


def test_of_many_classes_the_worst_are_shown():
    row = reports.results(["finetune"])["rows"][0]
    row["class_images"] = [100] * 30
    row["correct"] = {"natural": [100] * 30, "fgsm": [90 - n for n in range(30)]}
    found = classes.table([row])
    assert [line.number for line in found.lines] == list(range(29, 9, -1))
    assert (found.best.number, found.worst.number, found.classes) == (0, 29, 30)
