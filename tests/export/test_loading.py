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
from harp_jax.export import container
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
    best = next((workdir / "pretrain" / "checkpoints" / "best").iterdir())
    with pytest.raises(checkpoint.CheckpointError, match="allowed are complete stages"):
        harp_jax.load(best)
    assert "params" in checkpoint.load(best)


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_a_sparse_file_computes_with_its_kept_weights(tmp_path):
    network = small_networks.wider(num_classes=10)
    trained = small_networks.pruned(network, "small_networks:wider", kept=0.05)
    logits = {}
    for name in ("sparse", "dense"):
        harp_jax.export.write(trained, tmp_path / name, name)
        logits_fn, _ = harp_jax.load(tmp_path / name, model="small_networks:wider")
        native_calls = "harp_sparse" in jax.jit(logits_fn).lower(jnp.zeros((1, 8, 8, 1))).as_text()
        assert native_calls == (name == "sparse")
        images = (1000 * small_networks.images(trained, count) for count in (1, 20))
        logits[name] = np.concatenate([logits_fn(each) for each in images])
    np.testing.assert_allclose(logits["sparse"], logits["dense"], rtol=0, atol=1e-5)
    assert logits["dense"].std(0).max() > 0.1


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
def test_a_sparse_file_is_mapped_over_images(tmp_path):
    network = small_networks.wider(num_classes=10)
    trained = small_networks.pruned(network, "small_networks:wider", kept=0.05)
    harp_jax.export.write(trained, tmp_path / "net", "sparse")
    logits_fn, _ = harp_jax.load(tmp_path / "net", model="small_networks:wider")
    images = jnp.asarray(small_networks.images(trained, 3))

    def loss(image):
        return (logits_fn(1000 * image[None]) ** 2).sum()

    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss)))(images)
    one_by_one = [jax.value_and_grad(loss)(image) for image in images]
    for found, expected in zip(mapped, zip(*one_by_one, strict=True), strict=True):
        np.testing.assert_allclose(found, np.stack(expected), rtol=0, atol=1e-5)
    assert np.abs(mapped[1]).max() > 0.01


@pytest.mark.parametrize("format", ["sparse", "dense", "stablehlo"])
def test_no_images_have_no_logits(format, tmp_path):
    trained = small_networks.small("convnet")
    harp_jax.export.write(trained, tmp_path / "net", format)
    logits_fn, _ = harp_jax.load(tmp_path / "net", model="small_networks:convnet")
    for images in (np.zeros((0, 8, 8, 1), np.float32), jnp.zeros((0, 8, 8, 1))):
        logits = logits_fn(images)
        assert (logits.shape, logits.dtype) == ((0, 10), np.float32)


@pytest.mark.parametrize("format", ["sparse", "dense", "stablehlo", None])
def test_another_network_than_the_one_that_is_named_is_refused(format, tmp_path):
    checkpoint.save_result(tmp_path / "pretrain", jax.device_get(networks.tiny()), METADATA)
    path, error = tmp_path / "pretrain", checkpoint.CheckpointError
    if format is not None:
        harp_jax.export.write(path, tmp_path / "net", format)
        path, error = tmp_path / "net", harp_jax.export.FileError
    for model in ("cnn", "small_networks:convnet", "no:where"):
        with pytest.raises(error, match=f"'tiny', model='{model}'; allowed is model='tiny'$"):
            harp_jax.load(path, model=model)
    harp_jax.load(path, model="tiny")


def test_a_file_whose_format_is_no_text_is_refused(tmp_path):
    for said in ([], {}, 3, None):
        content = container.encode({"a": np.zeros(1, np.float32)}, {"format": said})
        (tmp_path / "net").write_bytes(content)
        with pytest.raises(harp_jax.export.FileError, match="not a file of the format sparse"):
            harp_jax.load(tmp_path / "net")


@pytest.fixture(scope="module")
def files_of_tiny(tmp_path_factory):
    """A folder with a stage and files of `tiny`, which takes 8x8 images."""
    folder = tmp_path_factory.mktemp("tiny")
    variables = jax.device_get(networks.tiny())
    checkpoint.save_result(folder / "pretrain", variables, METADATA)
    for form in ("sparse", "dense", "stablehlo"):
        harp_jax.export.write(folder / "pretrain", folder / form, form)
    return folder


@pytest.mark.parametrize("name", ["pretrain", "sparse", "dense", "stablehlo"])
@pytest.mark.parametrize(
    ("images", "found"),
    [
        (np.full((2, 8, 8, 1), 200, np.uint8), r"are uint8 \[2, 8, 8, 1\]"),
        (np.zeros((2, 16, 16, 1), np.float32), r"are float32 \[2, 16, 16, 1\]"),
        (np.zeros((2, 2, 2, 1), np.float32), r"are float32 \[2, 2, 2, 1\]"),
        (np.zeros((2, 8, 8, 3), np.float32), r"are float32 \[2, 8, 8, 3\]"),
        (np.zeros((8, 8, 1), np.float32), r"are float32 \[8, 8, 1\]"),
    ],
    ids=["bytes", "large", "small", "colours", "one"],
)
def test_images_that_do_not_fit_are_said_in_a_line(name, images, found, files_of_tiny):
    logits_fn, _ = harp_jax.load(files_of_tiny / name)
    for given in (images, jnp.asarray(images)):
        with pytest.raises(ValueError, match=f"^images: {found}; allowed are .*8, 8, 1") as raised:
            logits_fn(given)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["sparse", "dense", "stablehlo"])
def test_images_of_half_precision_are_taken_as_they_are(name, files_of_tiny):
    logits_fn, _ = harp_jax.load(files_of_tiny / name)
    images = np.random.default_rng(0).random((2, 8, 8, 1)).astype(np.float16)
    np.testing.assert_allclose(logits_fn(images), logits_fn(np.float32(images)), rtol=0, atol=1e-5)


def test_a_network_that_takes_any_size_does_so_when_loaded(tmp_path):
    network = small_networks.residual(num_classes=10)
    trained = small_networks.pruned(network, "small_networks:residual", kept=0.5)
    harp_jax.export.write(trained, tmp_path / "file", "dense")
    logits_fn, _ = harp_jax.load(tmp_path / "file", model="small_networks:residual")
    assert logits_fn(jnp.zeros((2, 16, 16, 1))).shape == (2, 10)


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
