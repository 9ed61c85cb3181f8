"""Networks of other people, from pretraining to files: what is pruned, counted and written."""

import logging

import foreign_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import harp_jax
from harp_jax import checkpoint, export, models
from harp_jax.checkpoint import CheckpointError
from harp_jax.data import load
from harp_jax.export import onnx_file
from harp_jax.export.errors import FileError
from harp_jax.pruning import channels
from harp_jax.pruning.layers import bake
from harp_jax.run import experiment

SHORT = {
    "loss": "natural",  # compiles faster than training with an attack
    "pretrain.epochs": 1,
    "prune.epochs": 2,
    "finetune.epochs": 1,
    "attack.steps": 2,
    "evaluate.run": ("pgd10",),
    "evaluate.attacks.pgd10.steps": 2,
    "data.train_examples": 640,
    "prune.target": 0.3,
}
SHAPE = (8, 8, 1)
FORMATS = ("sparse", "dense", "stablehlo", "onnx")
SLOW = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("dense_blocks", "next_blocks", "attentive")
]


def name_of(kind):
    return f"foreign_networks:{kind}"


def finished(temporary, kind, granularity, **fields):
    """The workdir of a short run of all stages."""
    workdir = temporary / f"{kind}-{granularity}"
    fields = {"prune.granularity": granularity, **SHORT, **fields}
    config = runs.digits(model=name_of(kind), **fields)
    if granularity == "channel":
        config.prune.initial_rate, config.prune.target = 0.9, 0.6
    experiment.run(config, workdir)
    return workdir


def check_counts(workdir, kind, granularity):
    """What results.json says is what the masks keep."""
    rows = runs.results(workdir)["rows"]
    assert [row["stage"] for row in rows] == list(runs.STAGES)
    row = rows[-1]
    variables = checkpoint.load(workdir)
    del variables["metadata"]
    params = jax.device_get(jax.jit(bake)(variables))["params"]
    leaves = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf
              for p, leaf in jax.tree.leaves_with_path(params)}  # fmt: skip
    for layer in row["layers"]:
        kernel = leaves.get(f"{layer['layer']}/kernel", leaves.get(layer["layer"]))
        assert layer["parameters"] == kernel.size
        if granularity == "weight":
            assert layer["kept"] == np.count_nonzero(kernel)
    pruned = [layer for layer in row["layers"] if layer["rate"] is not None]
    if granularity == "weight":
        assert sum(x["kept"] for x in pruned) <= 0.3 * sum(x["parameters"] for x in pruned)
    else:
        assert row["flops"] < row["total_flops"]
    assert row["total"] == sum(layer["parameters"] for layer in row["layers"])


def check_files(workdir, kind, folder):
    """Every file gives the network's logits, and so does the compact network."""
    name = name_of(kind)
    images = (
        np.asarray(
            load("digits", seed=0, validation_examples=150).test.take(slice(24)).images, np.float32
        )
        / 255
    )
    logits_fn, metadata = harp_jax.load(workdir, model=name)
    expected = np.asarray(logits_fn(images))
    assert metadata["model"] == name
    close = {"rtol": 1e-4, "atol": 1e-4 * np.abs(expected).max()}
    for format in FORMATS:
        path = folder / f"network.{format}"
        if format == "onnx" and kind == "attentive":
            with pytest.raises(FileError, match="no translation of JAX's operation 'dot_general'"):
                export.write(workdir, path, format, model=name)
            continue
        written = export.write(workdir, path, format, model=name)
        assert written.difference <= 1e-4 * written.largest
        if format == "onnx":
            found = onnx_file.function(path.read_bytes())(images)
        else:
            found = harp_jax.load(path, model=None if format == "stablehlo" else name)[0](images)
        np.testing.assert_allclose(found, expected, **close)
    variables = checkpoint.load(workdir)
    del variables["metadata"]
    small = export.compact(models.create(name, 10), variables, images)
    np.testing.assert_allclose(jax.jit(small.logits_fn)(images[:3]), expected[:3], **close)
    return small


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("kind", ["separable", "dense_blocks", "next_blocks", "attentive"])
def test_a_run_from_pretraining_to_files(kind, granularity, tmp_path, caplog):
    caplog.set_level(logging.INFO, "harp_jax")
    workdir = finished(tmp_path, kind, granularity)
    check_counts(workdir, kind, granularity)
    small = check_files(workdir, kind, tmp_path)
    assert (workdir / "network.safetensors").exists()
    page = (workdir / "report" / "index.html").read_text()
    whole = kind == "separable" or (granularity == "weight" and kind != "attentive")
    notes = runs.results(workdir)["notes"]
    assert ("stay dense" in page) == (not whole)
    assert any("stay dense" in note for note in notes) == (not whole)
    if granularity == "channel":
        check_widths(kind, workdir, small)
    with pytest.raises(CheckpointError, match=f"is of the network '{name_of(kind)}', model='tiny'"):
        harp_jax.load(workdir, model="tiny")


def check_widths(kind, workdir, small):
    """The compact network has no channel that the masks drop."""
    row = runs.results(workdir)["rows"][-1]
    architecture = channels.joined(channels.trace(models.create(name_of(kind), 10), SHAPE))
    outputs = {path[:-1] for group in architecture.prunable for path in group.writers}
    kept = {layer["layer"]: layer for layer in row["layers"]}
    for path in outputs:
        name = "/".join(path)
        whole = kept[name]["parameters"]
        assert small.widths[name] < whole
    assert sum(layer.kept_flops for layer in small.layers) <= row["flops"]


@pytest.mark.slow
def test_live_connections_pass_depthwise_convolutions(tmp_path):
    fields = {"prune.live": True, "stages": ("pretrain", "prune", "evaluate"), "prune.epochs": 1}
    workdir = finished(tmp_path, "separable", "weight", **fields)
    rows = runs.results(workdir)["rows"]
    assert rows[-1]["stage"] == "prune"


@pytest.mark.parametrize("kind", ["separable", *SLOW])
def test_compact_networks_give_the_logits_of_any_number_of_images(kind):
    model = getattr(foreign_networks, kind)(10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    numbers = np.random.default_rng(0)

    def drawn(leaf):
        array = numbers.uniform(0.1, 0.5, leaf.shape)
        if leaf.ndim > 1:
            array *= numbers.choice([-1, 1], leaf.shape) * (numbers.random(leaf.shape) < 0.04)
        return np.float32(array)

    variables = jax.tree.map(drawn, variables)
    images = numbers.random((7, *SHAPE), np.float32)
    small = export.compact(model, variables, images)
    expected = jax.jit(lambda x: model.apply(variables, x))(images)
    for count in (1, 7):
        found = jax.jit(small.logits_fn)(images[:count])
        atol = 1e-4 * float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=atol)
    before, after = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (variables["params"], small.variables)
    )
    assert after < 0.8 * before
