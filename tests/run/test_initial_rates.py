"""Where the rates of pruning start: from rules, files and checkpoints; and a run with each loss."""

import json
import logging
import math

import networks
import numpy as np
import pytest
import runs
from etils import epath
from numpy.testing import assert_allclose

from harp_jax import checkpoint, models
from harp_jax.config.sections import ConfigError
from harp_jax.pruning import schemes
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import layer_name, leaves_by_path, rates_of
from harp_jax.pruning.sparsity import layer_sparsity
from harp_jax.pruning.strategies import STRATEGIES
from harp_jax.run import experiment
from harp_jax.run import initial_rates as strategy
from harp_jax.workdir import checksums

LAYERS = ["conv1", "conv2", "dense1", "dense2"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return runs.finished(tmp_path_factory.getbasetemp()) / "pretrain"


@pytest.fixture(scope="module")
def mixed(dense, tmp_path_factory):
    """A run with another loss in each stage, which prunes from LAMP's rates."""
    losses = {"prune.loss": "trades", "finetune.loss": "mart"}
    epochs = {"prune.epochs": 2, "finetune.epochs": 2, "attack.steps": 3}
    fields = {"prune.strategy": "lamp", "stages": ("prune", "finetune")}
    source = {"prune.source": str(dense)}
    workdir = tmp_path_factory.mktemp("mixed") / "run"
    experiment.run(runs.digits(**losses, **epochs, **fields, **source), workdir)
    return workdir


@pytest.mark.slow
def test_every_stage_trains_with_its_own_loss(mixed):
    rows = {stage: runs.metrics(mixed, stage) for stage in ("prune", "finetune")}
    for stage in rows.values():
        assert stage[1]["train"]["loss"] < stage[0]["train"]["loss"]
    assert rows["finetune"][-1]["validation"]["natural"] > 0.5


def test_networks_are_chosen_by_the_accuracy_that_their_loss_trains(mixed, tmp_path):
    # So strong an attack leaves natural training no robust accuracy.
    fields = {
        "loss": "natural",
        "pretrain.epochs": 3,
        "attack.epsilon": 0.5,
        "attack.step_size": 0.2,
    }
    experiment.run(runs.digits(**fields, stages=("pretrain",)), tmp_path / "run")
    natural, adversarial = (tmp_path / "run", "pretrain"), (mixed, "finetune")
    for (workdir, stage), kind in ((natural, "natural"), (adversarial, "robust")):
        highest = -1.0
        for row in runs.metrics(workdir, stage):
            assert row["best"] == (row["validation"][kind] > highest)
            highest = max(highest, row["validation"][kind])
        assert highest > 0.3
    assert (
        max(row["validation"]["robust"] for row in runs.metrics(tmp_path / "run", "pretrain")) < 0.1
    )


def written_rates(workdir):
    return checksums.bare(json.loads((workdir / "strategy.json").read_text()))


def test_pruning_begins_with_the_rates_of_the_strategy(dense, mixed):
    params = checkpoint.load(dense)["params"]
    kernels = {path: leaves_by_path(params)[path] for path in parameter_costs(params)}
    expected = STRATEGIES["lamp"](kernels, 0.5, 0.02)
    written = written_rates(mixed)
    assert list(written) == LAYERS
    # A dense layer begins at a share of 0.99, where its logit is finite.
    most = 0.02 + 0.98 * 0.99
    wanted = [min(rate, most) for rate in expected.values()]
    assert_allclose(list(written.values()), wanted, rtol=1e-5)
    assert np.ptp(wanted) > 0.1


def start(fields, tmp_path):
    config = runs.digits(**fields)
    scheme = schemes.scheme(models.create("tiny", 10), (8, 8, 1), "weight")
    return strategy.start_pruning(config, networks.tiny(), scheme, epath.Path(tmp_path))


def rates(variables):
    found = {layer_name(path): float(rate) for path, rate in rates_of(variables).items()}
    return [found[name] for name in LAYERS]


@pytest.mark.parametrize(("target", "initial", "first"), [(0.2, 0.1, 0.2), (0.05, 0.1, 0.1)])
def test_rates_start_at_the_initial_rate_or_at_a_higher_target(target, initial, first, tmp_path):
    fields = {"prune.target": target, "prune.initial_rate": initial}
    assert_allclose(rates(start(fields, tmp_path)), [first] * len(LAYERS), rtol=1e-5)


def test_a_written_strategy_gives_the_same_rates_again(mixed, tmp_path):
    source = f"json:{mixed / 'strategy.json'}"
    written = written_rates(mixed)
    assert_allclose(
        rates(start({"prune.strategy": source}, tmp_path)), list(written.values()), rtol=1e-6
    )
    assert written_rates(tmp_path) == pytest.approx(written, rel=1e-6)


def test_a_written_strategy_that_has_changed_is_refused(tmp_path):
    start({}, tmp_path)
    path = tmp_path / "strategy.json"
    path.write_text(path.read_text().replace("conv1", "conv9"))
    with pytest.raises(ConfigError, match=r"by its checksum; remove the checksum if it was edited"):
        start({"prune.strategy": f"json:{path}"}, tmp_path)


def test_the_rates_of_another_run(mixed, tmp_path):
    for folder in (mixed, mixed / "prune"):
        started = start({"prune.strategy": f"checkpoint:{folder}"}, tmp_path)
        learned = rates_of(checkpoint.load(mixed / "prune"))
        assert_allclose(rates(started), [learned[name, "kernel"] for name in LAYERS], rtol=1e-5)


def test_rates_below_the_minimum_begin_at_it(tmp_path):
    given = {"conv1": 1.0, "conv2": 0.001, "dense1": 0.1, "dense2": 1}
    (tmp_path / "mine.json").write_text(json.dumps(given))
    started = start({"prune.strategy": f"json:{tmp_path / 'mine.json'}"}, tmp_path)
    assert_allclose(rates(started), [0.9902, 0.02, 0.1, 0.9902], rtol=1e-4)


def test_fixed_rates_that_are_read_are_kept_to_the_weight(tmp_path, caplog):
    given = {"conv1": 1.0, "conv2": 1.0, "dense1": 0.1, "dense2": 1}
    (tmp_path / "mine.json").write_text(json.dumps(given))
    fields = {"prune.strategy": f"json:{tmp_path / 'mine.json'}", "prune.method": "score"}
    rows = layer_sparsity(start({**fields, "prune.target": 0.6}, tmp_path))
    kept = {row.layer: (row.kept, row.parameters) for row in rows}
    assert [kept[name][0] for name in LAYERS] == [
        *(kept[name][1] for name in LAYERS[:2]),
        *(math.ceil(0.1 * kept["dense1"][1]), kept["dense2"][1]),
    ]
    assert "shifted" not in caplog.text
    start({**fields, "prune.target": 0.3}, tmp_path)
    assert "keeps more than prune.target=0.3; all logits were shifted by -" in caplog.text


def test_fixed_rates_meet_the_target_whatever_the_strategy(tmp_path):
    for name in STRATEGIES:
        fields = {"prune.strategy": name, "prune.method": "score"}
        rows = layer_sparsity(start(fields, tmp_path))
        kept = sum(row.kept for row in rows)
        total = sum(row.parameters for row in rows)
        assert kept == int(0.2 * total)


def test_the_log_shows_the_strategy_as_a_table(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "harp_jax"):
        started = start({"prune.strategy": "erk"}, tmp_path)
    lines = caplog.messages[-1].splitlines()
    assert lines[0] == "prune: erk"
    assert lines[1].split() == ["layer", "weights", "rate", "kept"]
    sizes = parameter_costs(started["params"])
    assert [line.split()[0] for line in lines[2:]] == [*LAYERS, "all"]
    shown = [line.split()[-2] for line in lines[2:-1]]
    assert shown == [f"{rate:.4f}" for rate in rates(started)]
    assert lines[-1].split()[2] == f"{sum(sizes.values()):,}"


@pytest.mark.parametrize("method", ["score", "harp"])
def test_the_table_counts_what_the_masks_keep(method, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "harp_jax"):
        rows = layer_sparsity(start({"prune.method": method}, tmp_path))
    lines = caplog.messages[-1].splitlines()[2:]
    kept = [row.kept for row in rows]
    assert [line.split()[-1] for line in lines] == [f"{each:,}" for each in [*kept, sum(kept)]]
