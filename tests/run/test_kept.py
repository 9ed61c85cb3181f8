"""What stays of a table when a workdir is evaluated again."""

import json

import pytest
from etils import epath

from harp_jax.run import kept
from harp_jax.workdir import checksums

SETTINGS = {"fgsm": {"type": "FGSM", "epsilon": 0.1}, "aa": {"type": "AutoAttack", "epsilon": 0.1}}
OWNER = {
    "network_digest": "n",
    "images_digest": "i",
    "seed": 0,
    "matmul_precision": "highest",
}


def row(stage, **fields):
    return {
        "stage": stage,
        "natural": 0.9,
        "robust": {"fgsm": 0.5, "aa": 0.4},
        "balanced": {"natural": 0.9, "fgsm": 0.5, "aa": 0.4},
        "correct": {"natural": [5, 4], "fgsm": [3, 2], "aa": [2, 2]},
        "class_images": [5, 5],
        "autoattack": {"aa": {"after": {}}},
        "checks": {
            "largest_excess": 3e-7,
            "excess": {"natural": 0.0, "fgsm": 3e-7, "aa": 1e-7},
            "zero_gradients": {"fgsm": 0.2, "aa": 0.1},
        },
        "warnings": ["fgsm: a doubt", "aa: another"],
        **OWNER,
        **fields,
    }


def table(*rows):
    return {"rows": list(rows), "attacks": SETTINGS}


def of(earlier, settings):
    return kept.of_earlier(earlier, settings, {"prune": OWNER, "finetune": OWNER})


def test_other_attacks_leave_everything():
    earlier = table(row("prune"), row("finetune"))
    found = of(earlier, {"pgd10": {"type": "PGD", "norms": ("l2",)}, "fgsm": SETTINGS["fgsm"]})
    assert list(found.rows.values()) == earlier["rows"]
    assert found.settings == SETTINGS


def test_a_row_of_another_precision_is_dropped_and_one_without_any_stays():
    older = {name: value for name, value in row("finetune").items() if name != "matmul_precision"}
    found = of(table(row("prune", matmul_precision="default"), older), SETTINGS)
    assert found.rows == {"finetune": older}


def test_an_attack_with_other_settings_is_dropped_alone():
    found = of(table(row("prune")), {"fgsm": {"type": "FGSM", "epsilon": 0.2}})
    assert found.settings == {"aa": SETTINGS["aa"]}
    left = found.rows["prune"]
    assert left["robust"] == {"aa": 0.4}
    assert left["balanced"] == {"natural": 0.9, "aa": 0.4}
    assert left["correct"] == {"natural": [5, 4], "aa": [2, 2]}
    assert left["class_images"] == [5, 5]
    assert left["checks"] == {
        "largest_excess": 1e-7,
        "excess": {"natural": 0.0, "aa": 1e-7},
        "zero_gradients": {"aa": 0.1},
    }
    assert left["autoattack"] == {"aa": {"after": {}}}
    assert left["warnings"] == ["aa: another"]
    assert kept.without(left, ["aa"])["autoattack"] == {}


@pytest.mark.parametrize("name", ["network_digest", "images_digest", "seed"])
def test_rows_of_other_networks_or_images_go(name):
    assert list(of(table(row("prune", **{name: "x"}), row("finetune")), {}).rows) == ["finetune"]
    without = row("prune")
    del without[name]
    assert of(table(without), {}) == ({}, {})
    assert of(table(row("pretrain")), {}) == ({}, {})  # there is no such network any more


def test_the_table_before_is_kept_where_something_goes(tmp_path):
    workdir, earlier = epath.Path(tmp_path), table(row("prune"))
    previous = workdir / "results.previous.json"
    kept.keep_previous(earlier, of(earlier, SETTINGS), workdir)
    kept.keep_previous(None, of(None, SETTINGS), workdir)
    assert not previous.exists()
    kept.keep_previous(earlier, of(earlier, {"aa": {"type": "AutoAttack", "epsilon": 1}}), workdir)
    assert checksums.bare(json.loads(previous.read_text())) == earlier
    assert [path.name for path in workdir.iterdir()] == ["results.previous.json"]


def test_the_largest_excess_is_that_of_all():
    assert kept.checks({}, {})["largest_excess"] == 0.0
    assert kept.checks({"natural": 0.0, "fgsm": 2e-7}, {})["largest_excess"] == 2e-7
    assert kept.checks({"natural": 0.0, "fgsm": None}, {})["largest_excess"] is None


def test_doubts_about_an_attack_whose_code_is_gone_stay():
    gone = {"mine": {"type": "no_such_module:Mine", "epsilon": 0.1}, "fgsm": SETTINGS["fgsm"]}
    checks = kept.checks({"natural": 0.0, "fgsm": 0.5, "mine": 0.0}, {})
    measured = row("prune", robust={"fgsm": 0.5, "mine": 0.4}, autoattack={}, checks=checks)
    measured["warnings"] = ["mine: the gradients may be masked", "fgsm: of before"]
    found = kept.doubts(measured, gone, 10)
    assert found[0] == "mine: the gradients may be masked"
    assert len(found) == 2
    assert "0.5 outside its ball" in found[1]
