"""`harp_jax.load`: the network as it was trained, from what its checkpoint says about it."""

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import runs
import small_networks

import harp_jax
from harp_jax import checkpoint, models, native
from harp_jax.run import experiment

METADATA = {"stage": "pretrain", "model": "tiny", "num_classes": 10, "image_shape": [8, 8, 1]}
NORMALIZATION = [[0.3], [0.4]]  # as JSON has it


@pytest.mark.parametrize(
    ("noted", "settings"),
    [
        ({}, {}),  # by an earlier version
        ({"normalization": None, "compute_dtype": "float32"}, {}),
        (
            {"normalization": NORMALIZATION, "compute_dtype": "bfloat16"},
            {"normalization": NORMALIZATION, "dtype": "bfloat16"},
        ),
    ],
    ids=["nothing", "none", "both"],
)
def test_normalization_and_type_come_from_the_metadata(noted, settings, tmp_path):
    variables = networks.tiny()
    checkpoint.save_result(tmp_path / "pretrain", jax.device_get(variables), {**METADATA, **noted})
    logits_fn, metadata = harp_jax.load(tmp_path / "pretrain")
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    model = models.create("tiny", 10, **settings)
    expected = jax.jit(models.logits_fn(model, variables))(images)
    np.testing.assert_allclose(logits_fn(images), expected, rtol=0, atol=1e-6)
    assert metadata == {**METADATA, **noted}


def test_a_stage_that_is_not_complete_is_refused(tmp_path_factory):
    workdir = runs.finished(tmp_path_factory.getbasetemp())
    (best,) = (workdir / "pretrain" / "checkpoints" / "best").iterdir()
    with pytest.raises(checkpoint.CheckpointError, match="allowed are complete stages"):
        harp_jax.load(best)
    assert "params" in checkpoint.load(best)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_a_sparse_file_computes_with_its_kept_weights(tmp_path):
    network = small_networks.broad(num_classes=10)
    trained = small_networks.pruned(network, "small_networks:broad", kept=0.05)
    logits = {}
    for name in ("sparse", "dense"):
        harp_jax.export.write(trained, tmp_path / name, name)
        logits_fn, _ = harp_jax.load(tmp_path / name, model="small_networks:broad")
        native_calls = "harp_sparse" in jax.jit(logits_fn).lower(jnp.zeros((1, 8, 8, 1))).as_text()
        assert native_calls == (name == "sparse")
        images = (small_networks.images(trained, count) for count in (1, 20))
        logits[name] = np.concatenate([logits_fn(each) for each in images])
    np.testing.assert_allclose(logits["sparse"], logits["dense"], rtol=0, atol=1e-5)
    assert np.abs(logits["dense"]).max() > 0.1


@pytest.mark.slow
def test_a_run_notes_normalization_and_type(tmp_path):
    config = runs.digits(**{"stages": ("pretrain",), "pretrain.epochs": 1, "attack.steps": 1})
    config.compute_dtype = "bfloat16"
    config.data.mean, config.data.std = (0.3,), (0.4,)
    experiment.run(config, tmp_path)
    logits_fn, metadata = harp_jax.load(tmp_path)
    assert metadata["normalization"] == NORMALIZATION
    assert metadata["compute_dtype"] == "bfloat16"
    variables = checkpoint.load(tmp_path)
    del variables["metadata"]
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    plain = models.logits_fn(models.create("tiny", 10), variables)
    expected = plain((images - 0.3) / 0.4)
    np.testing.assert_allclose(logits_fn(images), expected, rtol=0, atol=0.05)
    assert jnp.abs(expected).max() > 0.5
