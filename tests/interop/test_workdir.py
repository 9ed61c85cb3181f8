"""An imported network is a workdir: it is loaded, pruned, finetuned, evaluated and exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import torch_files

import harp_jax
from harp_jax import checkpoint, export, interop, models
from harp_jax.interop.layouts import layout
from harp_jax.pruning.layers import bake, kernel_paths, leaves_by_path
from harp_jax.run import experiment
from harp_jax.workdir import files

LAYOUT = layout("tiny", (8, 8, 1), 10)
# How stages train makes no difference to a source: as tests of methods do, that compiles least.
TRAINED = {**runs.FIELDS, "loss": "natural", "evaluate.run": ("fgsm",)}
IMAGES = np.random.default_rng(5).random((3, 8, 8, 1), np.float32)


def written(folder, pruned):
    """A checkpoint with positive variances and, if it is pruned, scores and rates."""
    rng, content = np.random.default_rng(0), {}
    for key, (_, shape) in LAYOUT.arrays.items():
        content[key] = (rng.random(shape) - (0 if "bn" in key else 0.5)).astype(np.float32)
    for name, (_, shape) in LAYOUT.layers().items() if pruned else ():
        content[f"{name}.popup_scores"] = rng.standard_normal(shape).astype(np.float32)
        content[f"{name}.k_score"] = np.array(-1.0, np.float32)
    path = folder / "net.pth.tar"
    path.write_bytes(torch_files.zipped({"state_dict": content}))
    return path


@pytest.fixture
def dense(tmp_path):
    interop.import_checkpoint(written(tmp_path, False), "tiny", tmp_path / "imported")
    return tmp_path / "imported"


@pytest.fixture
def pruned(tmp_path):
    path = written(tmp_path, True)
    interop.import_checkpoint(path, "tiny", tmp_path / "imported", target=0.2, alpha=0.1)
    return tmp_path / "imported"


def kept(path):
    variables = checkpoint.load(path)
    del variables["metadata"]
    params = jax.jit(bake)(variables)["params"]
    leaves = leaves_by_path(params)
    return {path: np.asarray(leaves[path]) != 0 for path in kernel_paths(params)}


def test_it_is_loaded_as_it_was_read(pruned, tmp_path):
    found = interop.read(tmp_path / "net.pth.tar", "tiny", target=0.2, alpha=0.1)
    logits_fn, metadata = harp_jax.load(pruned)
    expected = models.create("tiny", 10).apply(jax.jit(bake)(found.variables), jnp.asarray(IMAGES))
    np.testing.assert_allclose(logits_fn(IMAGES), expected, rtol=0, atol=1e-6)
    assert (metadata["stage"], metadata["model"]) == ("prune", "tiny")
    stored = checkpoint.load(pruned / "prune")
    assert stored.pop("metadata")["notes"] == found.report.notes
    assert checkpoint.digest(stored) == checkpoint.digest(found.variables)
    assert {layer.sum() for layer in kept(pruned).values()} < {*range(1, 2048)}


@pytest.mark.slow
def test_a_dense_one_is_pruned_and_finetuned(dense, tmp_path):
    fields = {**TRAINED, "prune.source": str(dense), "prune.method": "magnitude"}
    stages = ("prune", "finetune", "evaluate")
    experiment.run(runs.digits(**fields, stages=stages), tmp_path / "run")
    assert [row["stage"] for row in runs.results(tmp_path / "run")["rows"]] == ["prune", "finetune"]
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())["sources"]
    assert recorded["prune.source"]["given"] == str(dense)


@pytest.mark.slow
def test_a_pruned_one_is_finetuned_with_its_masks(pruned, tmp_path):
    fields = {**TRAINED, "finetune.source": str(pruned)}
    experiment.run(runs.digits(**fields, stages=("finetune", "evaluate")), tmp_path / "run")
    before, after = kept(pruned), kept(tmp_path / "run")
    for path, mask in before.items():
        np.testing.assert_array_equal(after[path], mask)


@pytest.mark.slow
def test_it_is_evaluated_where_it_is(pruned):
    experiment.run(runs.digits(**runs.FIELDS, stages=("evaluate", "report")), pruned)
    (row,) = runs.results(pruned)["rows"]
    assert row["stage"] == "prune"
    assert row["parameters"] == sum(mask.sum() for mask in kept(pruned).values())
    assert (pruned / "report" / "index.html").exists()


def test_it_is_exported(pruned, tmp_path):
    done = export.write(pruned, tmp_path / "net.safetensors", "sparse")
    assert done.metadata["kept"] == sum(mask.sum() for mask in kept(pruned).values())


def test_a_folder_in_use_is_refused(dense, tmp_path):
    path = tmp_path / "net.pth.tar"
    before = sorted(dense.rglob("*"))
    with pytest.raises(export.FileError, match=r"has import.json, pretrain in it; allowed are new"):
        interop.import_checkpoint(path, "tiny", dense)
    assert sorted(dense.rglob("*")) == before
    with pytest.raises(export.FileError, match=r"workdir=.*: cannot be read"):
        interop.import_checkpoint(path, "tiny", path)


def test_an_import_that_was_killed_is_done_again(tmp_path, monkeypatch):
    path, folder = written(tmp_path, False), tmp_path / "imported"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_result", killed)
        with pytest.raises(KeyboardInterrupt):
            interop.import_checkpoint(path, "tiny", folder)
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        harp_jax.load(folder)
    interop.import_checkpoint(path, "tiny", folder)
    assert checkpoint.is_complete(folder / files.STAGES[0])


def test_a_folder_that_cannot_be_written(tmp_path):
    path = written(tmp_path, False)
    (tmp_path / "file").write_text("")
    with pytest.raises(export.FileError, match="cannot be"):
        interop.import_checkpoint(path, "tiny", tmp_path / "file" / "workdir")
