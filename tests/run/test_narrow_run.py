"""A run of a narrow network with averaged weights: networks, files, page, and refusals."""

import jax
import numpy as np
import pytest
import runs

import harp_jax
from harp_jax import checkpoint, export, interop
from harp_jax.run import experiment

pytestmark = pytest.mark.slow

WIDTH = 0.5
FIELDS = {
    **runs.FIELDS,
    "width": WIDTH,
    "loss": "natural",
    "pretrain.average": 0.9,
    "finetune.average": 0.9,
    "evaluate.run": ("fgsm",),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("narrow")
    experiment.run(runs.digits(**FIELDS), workdir)
    return workdir


def images():
    return np.random.default_rng(0).random((5, 8, 8, 1), np.float32)


def test_every_stage_has_half_the_channels_and_says_so(workdir):
    for stage in runs.STAGES:
        found = checkpoint.load(workdir / stage)
        assert found["metadata"]["width"] == WIDTH
        assert found["params"]["conv2"]["kernel"].shape == (3, 3, 4, 8)
    (row,) = (row for row in runs.results(workdir)["rows"] if row["stage"] == "finetune")
    assert row["total"] == 9 * 4 + 9 * 4 * 8 + 32 * 16 + 16 * 10
    assert row["parameters"] <= 0.2 * row["total"]
    assert row["total_flops"] == 2 * (9 * 4 * 64 + 9 * 4 * 8 * 16 + 32 * 16 + 16 * 10)


@pytest.mark.parametrize("name", ["sparse", "dense", "stablehlo"])
def test_files_load_as_the_narrow_network(workdir, name, tmp_path):
    expected, _ = harp_jax.load(workdir)
    export.write(workdir, tmp_path / name, name)
    logits_fn, metadata = harp_jax.load(tmp_path / name)
    assert metadata["width"] == WIDTH
    np.testing.assert_allclose(logits_fn(images()), expected(images()), rtol=0, atol=1e-5)


def test_a_file_for_pytorch_is_imported_with_the_width_alone(workdir, tmp_path):
    export.write(workdir, tmp_path / "net.pt", "torch")
    with pytest.raises(export.FileError, match="is not of model='tiny'"):
        interop.read(tmp_path / "net.pt", "tiny", image_shape=(8, 8, 1))
    found = interop.read(tmp_path / "net.pt", "tiny", image_shape=(8, 8, 1), width=WIDTH)
    assert found.metadata["width"] == WIDTH
    expected = export.read(workdir).variables
    jax.tree.map(np.testing.assert_array_equal, found.variables["params"], expected["params"])


def test_the_page_names_the_width_unless_it_is_one(workdir, tmp_path_factory):
    pages = [
        (of / "report" / "index.html").read_text()
        for of in (workdir, runs.finished(tmp_path_factory.getbasetemp()))
    ]
    assert ["<dt>width</dt>" in page for page in pages] == [True, False]


def test_networks_of_another_width_are_refused(workdir, tmp_path):
    fields = {**FIELDS, "prune.source": str(workdir), "stages": ("prune",)}
    text = runs.refusal(runs.digits(**{**fields, "width": 1.0}), tmp_path)
    assert "is not of this network" in text
    assert "conv1/kernel (3, 3, 1, 4) instead of (3, 3, 1, 8)" in text
    # Rounding gives it the same shapes.
    text = runs.refusal(runs.digits(**{**fields, "width": 0.51}), tmp_path)
    assert "has width=0.5; allowed is that of this run, 0.51" in text


@pytest.mark.parametrize("width", [0, -0.5, 101])
def test_other_widths_are_refused(width, tmp_path):
    text = runs.refusal(runs.digits(width=float(width)), tmp_path)
    assert text == f"width={float(width)}: allowed are numbers in (0, 100]"


@pytest.mark.parametrize("average", [1.0, -0.1])
def test_other_averages_are_refused(average, tmp_path):
    text = runs.refusal(runs.digits(**{"finetune.average": average}), tmp_path)
    assert text == f"finetune.average={average}: allowed are numbers in [0, 1)"
