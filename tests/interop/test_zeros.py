"""Checkpoints whose masks were applied, our own among them, come in as pruned networks."""

import jax
import numpy as np
import pytest
import small_networks
import torch_files
from numpy.testing import assert_array_equal

from harp_jax import export, models
from harp_jax.export import FileError, torch_file
from harp_jax.interop import import_checkpoint, layouts, read
from harp_jax.pruning.layers import bake, leaves_by_path
from harp_jax.pruning.sparsity import layer_sparsity

RNG = np.random.default_rng(0)
NUMBERS = ((0.5,), (0.25,))
LAYERS = layouts.layout("tiny", (8, 8, 1), 10).layers()


def network(keep, normalization=NUMBERS):
    """A network of random weights, of which a share of each layer is kept."""
    module = models.create("tiny", 10, normalization=normalization)
    return small_networks.pruned(module, "tiny", kept=keep, normalization=normalization)


@pytest.fixture
def written(tmp_path):
    def write(trained):
        export.write(trained, tmp_path / "net.pth", "torch")
        return tmp_path / "net.pth"

    return write


@pytest.mark.parametrize("keep", [0.9, 0.2])
def test_an_own_file_keeps_its_mask_and_its_normalisation(keep, written, tmp_path):
    trained = network(keep)
    found = import_checkpoint(written(trained), "tiny", tmp_path / "workdir")
    assert found.metadata["stage"] == "prune"
    assert found.metadata["normalization"] == NUMBERS
    kernels = leaves_by_path(jax.jit(bake)(found.variables)["params"])
    expected = leaves_by_path(trained.variables["params"])
    for path, kernel in kernels.items():
        assert_array_equal(kernel, expected[path])
    kept = {row.layer: row.kept for row in layer_sparsity(found.variables)}
    assert sum(kept.values()) == trained.metadata["kept"]
    again = export.read(tmp_path / "workdir")
    images = RNG.random((5, 8, 8, 1)).astype(np.float32)
    assert_array_equal(again.logits_fn()(images), trained.logits_fn()(images))
    assert again.metadata["kept"] == trained.metadata["kept"]
    (note,) = [each for each in found.metadata["notes"] if "exactly 0" in each]
    assert f"keeps the other {trained.metadata['kept']}" in note


def test_an_own_dense_file_is_dense_and_says_that_nothing_is_normalised(written):
    found = read(written(network(1.0, None)), "tiny")
    assert (found.metadata["stage"], found.metadata["normalization"]) == ("pretrain", None)
    assert "normalisation none is that of the file's metadata" in found.metadata["notes"]


def test_another_normalisation_than_the_file_says_is_refused(written):
    for given in ("none", [[0.5], [0.5]]):
        with pytest.raises(FileError, match=r"normalization=.*: the file has its own, \(\(0\.5,"):
            read(written(network(1.0)), "tiny", normalization=given)
    with pytest.raises(FileError, match="the file has its own, none; allowed is to leave it out"):
        read(written(network(1.0, None)), "tiny", normalization=NUMBERS)
    assert read(written(network(1.0)), "tiny", normalization=NUMBERS)
    assert read(written(network(1.0, None)), "tiny", normalization="none")


def test_rate_1_is_a_dense_network(written):
    found = read(written(network(0.2)), "tiny", rate=1.0)
    assert found.metadata["stage"] == "pretrain"
    assert "scores" not in found.variables
    assert any("and may train" in note for note in found.metadata["notes"])


def test_a_layer_of_zeros_keeps_one(written):
    trained = network(0.2)
    trained.variables["params"]["dense1"]["kernel"][:] = 0
    found = read(written(trained), "tiny")
    assert {row.layer: row.kept for row in layer_sparsity(found.variables)}["dense1"] == 1
    assert not jax.jit(bake)(found.variables)["params"]["dense1"]["kernel"].any()


@pytest.mark.parametrize(("keep", "stage"), [(0.4, "prune"), (0.8, "pretrain")])
def test_a_file_of_others_is_pruned_if_half_of_its_weights_are_zero(keep, stage, tmp_path):
    arrays, _ = torch_file.decode(torch_file.encode(network(keep)))
    (tmp_path / "net.pth").write_bytes(torch_files.zipped(arrays))
    found = read(tmp_path / "net.pth", "tiny")
    assert found.metadata["stage"] == stage
    if stage == "prune":
        kept = {row.layer: row.kept for row in layer_sparsity(found.variables)}
        names = dict(zip(sorted(LAYERS), ("conv1", "conv2", "dense1", "dense2"), strict=True))
        expected = {names[n]: np.count_nonzero(arrays[f"{n}.weight"]) for n in LAYERS}
        assert kept == expected
