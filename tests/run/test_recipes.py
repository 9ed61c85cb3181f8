"""A recipe sets the fields that were left at their defaults, and no others."""

import json

import pytest
import runs

from harp_jax import checkpoint
from harp_jax import config as harp
from harp_jax.config.defaults import RECIPES
from harp_jax.config.recipes import check_given, with_recipe
from harp_jax.config.validation import check_fields
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.run import experiment
from harp_jax.workdir import identity


def get(config, field):
    section, _, own = field.partition(".")
    return config[section][own]


@pytest.mark.parametrize("method", ["harp", "score", "rate"])
def test_the_best_recipe_sets_its_fields_and_keeps_others(method):
    config = harp.default()
    config.prune.method = method
    config.prune.recipe = "best"
    config.prune.anneal = 0.8
    found = with_recipe(config)
    expected = RECIPES["best"] | {"prune.anneal": 0.8}
    if method == "score":  # its rates do not learn
        expected |= {"prune.window": 0.0}
    assert {field: get(found, field) for field in expected} == expected
    assert not config.prune.live  # the given configuration is as it was
    assert with_recipe(found).to_dict() == found.to_dict()
    changed = set(RECIPES["best"])
    for section in ("prune", "finetune"):
        for own, value in config[section].items():
            assert f"{section}.{own}" in changed or found[section][own] == value
    harp.validate(config)


def test_the_papers_recipe_changes_nothing():
    assert with_recipe(harp.default()).to_dict() == harp.default().to_dict()


def test_a_method_of_ones_own_is_not_imported_for_the_fields_of_a_recipe():
    config = harp.default()
    config.prune.update(recipe="best", method="nowhere:Method")
    check_fields(config)
    found = with_recipe(config)
    assert (found.prune.window, found.prune.joint) == (0.0, True)


def test_channels_have_no_live_connections_to_spend_on():
    config = harp.default()
    config.prune.update(recipe="best", granularity="channel")
    found = with_recipe(config)
    assert not found.prune.live
    assert found.prune.joint
    harp.validate(config)


@pytest.mark.parametrize("method", ["admm", "magnitude", "flying_bird"])
def test_methods_without_masks_that_learn_have_no_recipe(method):
    config = harp.default()
    config.prune.update(recipe="best", method=method)
    allowed = f"prune.recipe='best': allowed are 'paper' with the method '{method}'"
    with pytest.raises(harp.ConfigError, match=allowed):
        harp.validate(config)


def test_fields_that_need_one_of_the_recipe_go_with_it():
    config = harp.default()
    config.prune.update(recipe="best", live_after=0.5)
    harp.validate(config)
    config.prune.granularity = "channel"
    with pytest.raises(harp.ConfigError, match=r"live_after=0.5: allowed are 0 without prune.live"):
        harp.validate(config)


@pytest.mark.parametrize(("field", "value"), [("prune.live", False), ("finetune.average", 0.0)])
def test_a_default_that_is_given_by_name_is_not_replaced_in_silence(field, value):
    flag = f"--config.{field}={value}"
    process = runs.here(runs.command("none", "--config.prune.recipe=best", flag))
    allowed = "allowed are other values than the default with prune.recipe='best', which sets"
    assert (process.returncode, f"{field}={value}: {allowed}" in process.stderr) == (1, True)


def test_what_the_recipe_leaves_alone_may_be_given():
    config = harp.default()
    given = ("prune.live", "prune.anneal", "prune.fill", "seed")
    check_given(config, given)
    config.prune.update(recipe="best", granularity="channel", anneal=0.8, fill=True)
    check_given(config, given)


def test_the_name_of_a_recipe_does_not_make_another_run():
    fields = identity.flat(with_recipe(harp.default()).to_dict())
    named = fields | {"prune.recipe": "best"}
    assert not identity.compare(named, fields, fields).different
    assert identity.compare(named, fields | {"prune.live": True}, fields).different


@pytest.mark.slow
def test_a_run_has_the_fields_of_its_recipe(tmp_path, tmp_path_factory):
    dense = runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"
    fields = {
        "stages": ("prune",),
        "loss": "natural",
        "prune.source": str(dense),
        "prune.epochs": 1,
    }
    experiment.run(runs.digits(**fields, **{"prune.recipe": "best"}), tmp_path / "recipe")
    recorded = json.loads((tmp_path / "recipe" / "config.json").read_text())["config"]
    assert {field: get(recorded, field) for field in RECIPES["best"]} == RECIPES["best"]
    found = checkpoint.load(tmp_path / "recipe" / "prune")
    assert sum(each.kept for each in layer_sparsity(found)) == int(0.2 * 3592)  # filled up
    before = checkpoint.load(dense)["params"]["conv2"]["kernel"]
    assert (found["params"]["conv2"]["kernel"] != before).any()  # weights train as well
