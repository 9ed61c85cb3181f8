"""The page "Prune your own network in ten minutes": its commands and code, from start to end."""

import ast
import shlex
import sys

import numpy as np
import own_data
import pages
import pytest
import runs
import small_networks

import harp_jax
from harp_jax import config as harp
from harp_jax import export, interop, models
from harp_jax.export.__main__ import main as export_main
from harp_jax.interop.__main__ import main as interop_main
from harp_jax.pruning.layers import kernel_paths, leaves_by_path
from harp_jax.run import experiment

PAGE = pages.DOCS / "howto" / "ten_minutes.md"
IMAGES = own_data.random_set(size=(32, 32), train=300, test=100)
LEAST = {
    "data.validation_examples": 100,
    "attack.steps": 1,
    "prune.epochs": 1,
    "finetune.epochs": 1,
    "evaluate.run": ("fgsm",),
}


def masks(variables):
    """Where kernels are not zero, by path."""
    leaves = leaves_by_path(variables["params"])
    return {path: np.asarray(leaves[path]) != 0 for path in kernel_paths(variables["params"])}


@pytest.fixture
def trained(tmp_path, tmp_path_factory, monkeypatch):
    """A folder with net.pth, a network that was trained a little; it has few layers."""
    monkeypatch.setitem(models.MODELS, "resnet18", small_networks.residual)
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", **IMAGES._asdict())
    config = harp.default()
    config.update_from_flattened_dict(
        {
            "model": "resnet18",
            "data.name": "npz:own.npz",
            "devices": 1,
            "compilation_cache": "",
            "loss": "natural",
            "attack.steps": 1,
            "batch_size": 25,
            "pretrain.epochs": 4,
            "data.validation_examples": 100,
            "stages": ("pretrain",),
        }
    )
    experiment.run(config, tmp_path / "own")
    export.write("own", "net.pth", "torch")
    return tmp_path


def call(command, temporary):
    """Gives a command of the page; runs are as short as can be."""
    program, option, module, *arguments = shlex.split(command)
    assert (program, option) == ("python", "-m")
    if module == "harp_jax.main":
        further = [runs.cache_option(temporary), "--config.devices=1"]
        further += [f"--config.{name}={value}" for name, value in LEAST.items()]
        done = runs.here([sys.executable, "-m", module, *arguments, *further])
        assert done.returncode == 0, done.stderr
    else:
        mains = {"harp_jax.interop": interop_main, "harp_jax.export": export_main}
        assert mains[module](arguments) == 0


@pytest.mark.slow
def test_the_page_from_start_to_end(trained, tmp_path_factory, capsys):
    names = {**IMAGES._asdict()}
    parts = [*pages.blocks(PAGE, "sh"), *pages.blocks(PAGE, "python")]
    for block in sorted(parts, key=lambda each: int(each.place.rpartition(":")[2])):
        if block.language == "sh":
            for command in pages.commands(block):
                call(command, tmp_path_factory.getbasetemp())
        else:
            exec(compile(ast.parse(block.code, block.place), block.place, "exec"), names)

    test = IMAGES.x_test[:100].astype(np.float32) / 255
    original = harp_jax.load("own")[0](test)
    np.testing.assert_allclose(harp_jax.load("runs/dense")[0](test), original, rtol=0, atol=1e-5)
    known = (original.argmax(-1) == IMAGES.y_test[:100]).mean()
    accuracy = float(names["accuracy"])
    assert accuracy == pytest.approx(float(known), abs=0.01)
    assert [row["stage"] for row in names["rows"]] == ["prune", "finetune"]
    last = names["rows"][-1]
    assert last["parameters"] == int(0.1 * last["total"])
    (dense,) = runs.results(trained / "runs" / "dense")["rows"]
    assert dense["natural"] == pytest.approx(accuracy, abs=0.01)
    assert (trained / "runs" / "small" / "report" / "index.html").exists()
    assert names["metadata"]["kept"] == last["parameters"]
    expected = masks(export.read("runs/small").variables)
    found = masks(interop.read("small.pth", "resnet18").variables)
    for path, mask in expected.items():
        np.testing.assert_array_equal(found[path], mask)
    exact = np.asarray(harp_jax.load("runs/small")[0](test))
    near = np.abs(exact - names["logits"]).max() / np.abs(exact).max()
    assert 0 < near < 0.05  # bfloat16
    assert "error" not in capsys.readouterr().err
