"""experiments.leaderboard: networks and results as AdversarialPruningBenchmark asks for them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from experiments import leaderboard
from harp_jax import checkpoint, interop, models
from harp_jax.interop.layouts import layout
from harp_jax.pruning.costs import parameter_costs
from harp_jax.pruning.layers import bake, kernel_paths, leaves_by_path, make_prunable
from harp_jax.workdir import records

METHOD = "HARP_Zhao2023Holistic"
AUTOATTACK = {"type": "AutoAttack", "epsilon": 0.031, "version": "standard"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Networks of the benchmark's names with few layers and channels."""
    monkeypatch.setitem(models.MODELS, "resnet18", small_networks.residual)
    monkeypatch.setitem(models.MODELS, "vgg16_bn", small_networks.vgg)
    layout.cache_clear()
    yield
    layout.cache_clear()


def network(kept, granularity, model):
    """Variables whose layers all keep the same share."""
    image = jnp.zeros((1, *leaderboard.IMAGE_SHAPE))
    dense = jax.jit(models.create(model, 10).init)(jax.random.key(0), image)
    rates = dict.fromkeys(parameter_costs(dense["params"]), kept)
    found = jax.jit(lambda tree: make_prunable(tree, rates, 0.01, granularity))(dense)
    return jax.device_get(found)


def run(folder, kept=0.1, granularity="weight", model="resnet18", /, **changes):
    """A finished run whose numbers are made up.

    Args:
        folder: Its workdir.
        kept: Share of the weights, or of the channels, that is kept.
        granularity: 'weight' or 'channel'.
        model: Name of the network.
        changes: Entries that replace those of the row, of results.json, of the configuration
            ('prune') or of the network's metadata, by name.
    """
    variables = network(kept, granularity, model)
    masks = masks_of(variables)
    total, left = (sum(int(f(mask)) for mask in masks.values()) for f in (np.size, np.sum))
    metadata = {"stage": "finetune", "model": model, "num_classes": 10, "notes": [], "epoch": 1}
    metadata |= {"image_shape": list(leaderboard.IMAGE_SHAPE), "normalization": None}
    metadata |= {name: changes[name] for name in metadata.keys() & changes.keys() - {"stage"}}
    checkpoint.save_result(folder / "finetune", variables, metadata)
    row = {"stage": "finetune", "natural": 0.83381, "robust": {"fgsm": 0.6, "aa": 0.45402}}
    row |= {"sparsity": 1 - left / total, "parameters": left, "total": total, "images": 10_000}
    row |= {"network_digest": checkpoint.digest(variables), "warnings": []}
    row = {name: changes.get(name, row[name]) for name in row}
    results = {"attacks": {"fgsm": {"type": "FGSM"}, "aa": AUTOATTACK}, "rows": [row]}
    results["dataset"] = {"name": "cifar:/data/cifar"}
    results = {name: changes.get(name, results[name]) for name in results}
    prune = {"method": "harp", "target": kept, "strategy": "uniform", "source": ""}
    config = {"prune": prune, "loss": "trades", "pretrain": {"loss": None}, "finetune": {}}
    config["data"] = {"name": "cifar:/data/cifar", "select_on": "validation"}
    config = {
        name: {**config[name], **changes.get(f"{name}_", {})} if name != "loss" else "trades"
        for name in config
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return folder


def masks_of(variables):
    """Where kernels are not zero, by path."""
    params = jax.jit(bake)(variables)["params"]
    leaves = leaves_by_path(params)
    return {path: np.asarray(leaves[path]) != 0 for path in kernel_paths(params)}


def call(*arguments):
    return leaderboard.main([*map(str, arguments), f"--method={METHOD}"])


def test_checkpoints_have_the_benchmarks_names_and_the_masks(tmp_path):
    folders = [run(tmp_path / "a", 0.1), run(tmp_path / "b", 0.05, "weight", "vgg16_bn")]
    assert call(*folders, f"--out={tmp_path / 'out'}") == 0
    files = [f"{METHOD}_R18_CIFAR10_US_90.pth.tar", f"{METHOD}_V16_CIFAR10_US_95.pth.tar"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == files
    for folder, file, model in zip(folders, files, ("resnet18", "vgg16_bn"), strict=True):
        read = interop.read(tmp_path / "out" / file, model)
        variables = checkpoint.load(folder)
        del variables["metadata"]
        expected, found = masks_of(variables), masks_of(read.variables)
        assert found.keys() == expected.keys()
        for path, mask in expected.items():
            np.testing.assert_array_equal(found[path], mask)
            assert 0 < mask.sum() < mask.size


def test_the_issue_has_the_numbers_of_the_run_and_nothing_else(tmp_path):
    folder = run(tmp_path / "a", warnings=["aa: a doubt"], data_={"select_on": "test"})
    text = leaderboard.issue([leaderboard.entry(folder, METHOD)])
    key = f"{METHOD}_R18_CIFAR10_US_90"
    assert f'_Model GDrive:_ "{key}" : ["", ".pth.tar"]' in text
    assert f'_Distances GDrive:_ "{key}" : ["", ".pickle"]' in text
    visible = re.sub(r"<!--.*?-->", "", text)
    assert "_Clean Accuracy:_ 83.38\n_Robust Accuracy (AA):_ 45.40\n" in visible
    assert "_Robust Accuracy (HO-FMN):_ \n" in visible
    (line,) = re.findall(f"^- {key}: (.*)$", text, re.MULTILINE)
    weights = "weights are kept; no normalization"
    assert line.partition(weights)[2] == "; epochs were chosen on test images; aa: a doubt"
    assert re.search(r"^[\d,]+ of [\d,]+ weights", line)


def test_a_network_that_normalizes_says_so(tmp_path):
    folder = run(tmp_path / "a", normalization=[[0.5, 0.4, 0.3], [0.2, 0.2, 0.2]])
    notes = leaderboard.entry(folder, METHOD).notes
    assert notes[1:] == [
        "needs normalization, mean [0.5, 0.4, 0.3], standard deviation [0.2, 0.2, 0.2]"
    ]


def test_answers_are_those_that_the_run_knows(tmp_path):
    here = leaderboard.entry(run(tmp_path / "a"), METHOD)
    assert here.answers == {
        "link_to_paper": "",
        "ap_key": METHOD,
        "Type of Pipeline:": "A-Methods Pruning After Training",
        "A: Pretraining ": "Adversarial Training (AT) TRADES",
        "A: Finetuning": "Adversarial Training (AT) TRADES",
        "A: OneShot (1S) vs Iterative (IT)": "1S",
        "Pruning structure": "Unstructured (US)",
        "Pruning locality": "Global Pruning (G)",
        "Pruning criterion": "Least Importance Score (LIS)",
    }
    settings = {"method": "score", "target": 0.5, "source": "runs/dense"}
    channels = run(tmp_path / "b", 0.5, "channel", prune_=settings)
    other = leaderboard.entry(channels, METHOD)
    assert other.key == f"{METHOD}_R18_CIFAR10_S_50"
    assert other.notes[0].startswith("the FLOPs are those of 0.5")
    both = leaderboard.taxonomy([here, other])
    assert both["Pruning structure"] == "Unstructured (US), Structured (S) channels"
    assert both["Pruning locality"] == "Global Pruning (G), Local Pruning (L)"
    assert both["A: Pretraining "] == ""  # another run's
    own = leaderboard.entry(run(tmp_path / "c", prune_={"method": "mine:Own"}), METHOD)
    assert own.answers["Pruning criterion"] == own.answers["Pruning locality"] == ""


def test_what_is_missing_of_a_triple(tmp_path, capsys):
    folders = [run(tmp_path / str(kept), kept) for kept in (0.1, 0.01)]
    assert call(*folders, f"--out={tmp_path / 'out'}") == 0
    assert f"still missing: {METHOD}_R18_CIFAR10_US_95\n" in capsys.readouterr().out
    assert "n°2" in (tmp_path / "out" / "issue.md").read_text()
    answers = json.loads((tmp_path / "out" / "taxonomy.json").read_text())
    assert answers["ap_key"] == METHOD


DIGITS, PGD = {"name": "digits"}, {"pgd": {"type": "PGD", "epsilon": 0.031}}
WEAKER = {"aa": {**AUTOATTACK, "steps": 10}}
REFUSED = {
    "model": ({"model": "wrn_28_4"}, "model='wrn_28_4': allowed are resnet18, vgg16_bn"),
    "classes": ({"num_classes": 100}, "num_classes=100: allowed are 10"),
    "shape": (
        {"image_shape": [16, 16, 3]},
        r"image_shape=\[16, 16, 3\]: allowed are \[32, 32, 3\]",
    ),
    "data": ({"dataset": DIGITS}, "data.name='digits': allowed are cifar10, cifar:DIR and svhn"),
    "cifar100": ({"dataset": {"name": "cifar100"}}, "data.name='cifar100': allowed are"),
    "images": ({"images": 1000}, "images=1000: allowed are 10000"),
    "dense": ({"sparsity": 0.0}, r"sparsity=0 \(finetune\): allowed are pruned"),
    "between": ({"sparsity": 0.93}, "sparsity in percent=93.00: allowed are 90, 95, 99, up to 0.5"),
    "row": ({"stage": "prune"}, "no row of stage 'finetune', only of prune; evaluate it"),
    "other": ({"network_digest": "x"}, "network_digest='x': allowed is that of the network"),
    "attack": ({"attacks": PGD}, "attacks=fgsm, aa: allowed are evaluations with AutoAttack, ver"),
    "weaker": (
        {"attacks": WEAKER},
        "allowed are evaluations with AutoAttack, version standard, li",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_benchmark_does_not_take(name, tmp_path, capsys):
    changes, message = REFUSED[name]
    folder = run(tmp_path / "run", **changes)
    assert call(folder, f"--out={tmp_path / 'out'}") == 1
    line = capsys.readouterr().err
    assert re.search(message, line), line
    assert (line.count("\n"), str(folder) in line) == (1, True)
    assert not (tmp_path / "out").exists()


def test_names_data_and_runs_that_do_not_fit(tmp_path):
    folder = run(tmp_path / "a", dataset=DIGITS)
    for method in ("HARP", "HARP_Zhao_2023", "HARP-live_Zhao2023", "_Zhao2023"):
        with pytest.raises(leaderboard.LeaderboardError, match="allowed are names of the form"):
            leaderboard.entry(folder, method)
    assert leaderboard.entry(folder, METHOD, "SVHN").key == f"{METHOD}_R18_SVHN_US_90"
    named = run(tmp_path / "b")
    with pytest.raises(leaderboard.LeaderboardError, match="dataset='SVHN': allowed with 'cifar:"):
        leaderboard.entry(named, METHOD, "SVHN")
    channels = run(tmp_path / "c", 0.5, "channel", finetune_={"source": "runs/other"})
    with pytest.raises(leaderboard.LeaderboardError, match="source='runs/other': allowed with cha"):
        leaderboard.entry(channels, METHOD)
    (named / "results.json").unlink()
    with pytest.raises(records.ReportError, match=r"results.json: missing"):
        leaderboard.entry(named, METHOD)


def test_two_networks_with_one_name_are_refused(tmp_path):
    entries = [leaderboard.entry(run(tmp_path / name), METHOD) for name in "ab"]
    with pytest.raises(leaderboard.LeaderboardError, match=r"b: key='HARP_.*': allowed once, and"):
        leaderboard.write(entries, tmp_path / "out")
    assert not (tmp_path / "out").exists()
