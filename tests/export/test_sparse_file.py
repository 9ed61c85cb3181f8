"""The formats 'sparse' and 'dense': sizes, exactness, and what is refused."""

import functools
import json
import zlib

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import small_networks

from harp_jax import models
from harp_jax.export import FileError, container, dense_file, packing, sparse_file
from harp_jax.export.trained import flat, tree
from harp_jax.export.unread import without_unread

SLOW = ("vgg", "wide", "bottleneck")  # their arrays are of the same kinds


@functools.partial(jax.jit, static_argnums=0)
def compiled(network, variables, images):
    return models.logits_fn(network, variables)(images)


def logits(trained):
    return np.asarray(compiled(trained.network, trained.variables, small_networks.images(trained)))


def opened(encoder, trained, dtype="float32"):
    return encoder.decode(encoder.encode(trained, dtype), trained.metadata["model"])


@pytest.mark.parametrize(
    "kind",
    ["convnet", "residual", *(pytest.param(k, marks=pytest.mark.slow) for k in SLOW)],
)
def test_logits_are_the_same_bits(kind):
    trained = small_networks.small(kind)
    for encoder in (sparse_file, dense_file):
        found = opened(encoder, trained)
        np.testing.assert_array_equal(logits(found), logits(trained))
        assert trained.metadata.items() <= found.metadata.items()


def test_the_same_network_gives_the_same_bytes():
    trained = small_networks.small("convnet")
    for encoder in (sparse_file, dense_file):
        assert encoder.encode(trained) == encoder.encode(trained)


def test_a_pruned_network_is_small():
    network = models.create("cnn", 10)
    trained = small_networks.pruned(network, "cnn", (28, 28, 1), kept=0.01)
    dense = sum(array.nbytes for array in flat(trained.variables).values())
    assert len(sparse_file.encode(trained)) < 0.016 * dense
    assert len(sparse_file.encode(trained, "bfloat16")) < 0.013 * dense
    expected = logits(trained)
    for dtype, tolerance in (("float32", 0), ("bfloat16", 0.02), ("int8", 0.02)):
        found = opened(sparse_file, trained, dtype)
        np.testing.assert_allclose(logits(found), expected, 0, tolerance * abs(expected).max())


def test_units_that_nothing_reads_are_left_out():
    trained = small_networks.small("residual")
    leaves = dict(flat(trained.variables))
    for path in ("conv3_1/conv1", "conv3_1/shortcut"):  # all that read the first block's output
        kernel = leaves[f"params/{path}/kernel"].copy()
        kernel[:, :, 2] = 0
        leaves[f"params/{path}/kernel"] = kernel
    leaves["params/conv2_1/conv1/kernel"] = leaves["params/conv2_1/conv1/kernel"].copy()
    leaves["params/conv2_1/conv1/kernel"][:, :, 2] = 0
    cut = trained._replace(variables=tree(leaves))
    kept = flat(without_unread(cut.network, cut.variables, cut.image_shape))
    for path, silent in {
        "params/conv1/kernel": 0,
        "params/norm1/bias": 0,
        "params/conv2_1/conv2/kernel": 0,
        "params/conv2_1/norm2/scale": 0,
        "batch_stats/conv2_1/norm2/mean": 0,
        "batch_stats/conv2_1/norm2/var": 1,
    }.items():
        assert (kept[path][..., 2] == silent).all(), path
        assert (leaves[path][..., 2] != silent).any(), path
        np.testing.assert_array_equal(kept[path][..., 3], leaves[path][..., 3])
    np.testing.assert_array_equal(logits(cut._replace(variables=tree(kept))), logits(cut))


def test_scales_belong_to_output_channels():
    trained = small_networks.small("convnet")
    found = opened(sparse_file, trained, "int8")
    before, after = (
        without_unread(each.network, each.variables, each.image_shape)["params"]["conv2"]["kernel"]
        for each in (trained, found)
    )
    largest = np.abs(before).max((0, 1, 2))
    assert (np.abs(before - after) <= largest / 254 * 1.001).all()
    np.testing.assert_allclose(np.abs(after).max((0, 1, 2)), largest, rtol=1e-6)
    assert np.unique(after[..., 0] / largest[0]).size > 5


def test_anyone_can_read_the_dense_file(tmp_path):
    trained = small_networks.small("residual")
    (tmp_path / "net").write_bytes(dense_file.encode(trained))
    arrays = safetensors.numpy.load_file(tmp_path / "net")
    expected = flat(trained.variables)
    assert arrays.keys() == expected.keys()
    for path, array in arrays.items():
        np.testing.assert_array_equal(array, expected[path])
    with safetensors.safe_open(tmp_path / "net", "np") as file:
        assert json.loads(file.metadata()["image_shape"]) == [8, 8, 1]


def test_arrays_of_any_strides_are_written():
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5).transpose(2, 0, 1)[:, ::-1]
    arrays, _ = container.decode(container.encode({"a": array}, {}))
    np.testing.assert_array_equal(arrays["a"], array)


def test_dense_kernels_in_bfloat16():
    trained = small_networks.small("convnet")
    arrays, metadata = container.decode(dense_file.encode(trained, "bfloat16"))
    assert metadata["dtype"] == "bfloat16"
    for path, array in arrays.items():
        assert array.dtype == (ml_dtypes.bfloat16 if path.endswith("kernel") else np.float32)
    found = opened(dense_file, trained, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(found.variables)} == {np.dtype("float32")}
    np.testing.assert_allclose(logits(found), logits(trained), 0, 0.02 * abs(logits(trained)).max())


@pytest.mark.parametrize("encoder", [sparse_file, dense_file], ids=["sparse", "dense"])
def test_every_altered_or_cut_byte_is_found(encoder):
    trained = small_networks.small("convnet")
    content = encoder.encode(trained)
    places = np.random.default_rng(0).choice(len(content), 150, replace=False)
    for place in (*range(40), *places, len(content) - 1):
        altered = bytearray(content)
        altered[place] ^= 0x11
        with pytest.raises(FileError) as caught:
            encoder.decode(bytes(altered), trained.metadata["model"])
        assert "\n" not in str(caught.value)
    for length in (0, 7, 8, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(FileError, match="damaged"):
            encoder.decode(content[:length], trained.metadata["model"])


def rewritten(trained, rows=None, **changes):
    """A sparse file with other metadata or another layout, and the digest of all that."""
    arrays, metadata = container.decode(sparse_file.encode(trained))
    del metadata["digest"]
    if rows is not None:
        text = json.dumps(rows).encode()
        arrays["layout"] = np.frombuffer(sparse_file.zlib.compress(text), np.uint8)
    return container.encode(arrays, {**metadata, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format='other': allowed is 'harp_jax.sparse'"),
        ({"version": 2}, "version=2: allowed are up to 1; a newer harp_jax wrote it"),
        ({"version": "2"}, "version='2': allowed are up to 1$"),
        ({"dtype": "float16"}, "dtype='float16': allowed are float32, bfloat16, int8"),
        ({"dtype": "int8"}, "values: "),
        ({"image_shape": [8, 8]}, r"image_shape=\[8, 8\]: allowed are three sizes"),
        ({"image_shape": [8, 8, 10**9]}, "image_shape=.*: allowed are three sizes"),
        ({"image_shape": [16, 16, 1]}, "params/dense1/kernel: has the shape .*; allowed is"),
        ({"num_classes": 10**12}, "num_classes=1000000000000: allowed are"),
        ({"num_classes": 11}, "params/dense2/bias: has the shape"),
        ({"model": 3}, "model=3: allowed are names"),
        ({"model": "os:system"}, "model='small_networks:convnet'; allowed is model='os:system'"),
        ({"normalization": [[1]]}, "no network of this package"),
        ({"rows": []}, "has the shape None; allowed is that of the network"),
        ({"format": []}, r"format=\[\]: allowed is"),
        ({"model": "tiny"}, "'tiny', model='small_networks:convnet'; allowed is model='tiny'$"),
        ({"rows": [["a", [2], 3, 0, 0]]}, "is not an array"),
        ({"rows": [["a", [-2], 0, 0, 0]]}, "is not an array"),
        ({"rows": [["a", [2], 0, 0]]}, "layout: not a table of arrays"),
        ({"rows": [["a", [4, 4], 0, 0, 3]]}, "has more positions than entries"),
        ({"rows": {"a": 1}}, "layout: not a table of arrays"),
        ({"rows": [["a", [10**9, 10**9], 0, -1, 0]]}, "entries; allowed are at most"),
    ],
)
def test_files_that_say_something_impossible_are_refused(changes, message):
    trained = small_networks.small("convnet")
    with pytest.raises(FileError, match=message) as caught:
        sparse_file.decode(rewritten(trained, **changes), trained.metadata["model"])
    assert "\n" not in str(caught.value)


def test_nothing_is_unpacked_of_arrays_that_are_not_the_networks(monkeypatch):
    monkeypatch.setattr(packing, "unpack_positions", lambda *_: pytest.fail("was unpacked"))
    trained = small_networks.small("convnet")
    content = rewritten(trained, [["params/conv1/kernel", [2**30], 0, -1, 0]])
    with pytest.raises(FileError, match=r"has the shape .*; allowed is that of the network"):
        sparse_file.decode(content, trained.metadata["model"])


def test_an_array_that_stands_in_the_layout_twice_is_refused():
    trained = small_networks.small("convnet")
    row = ["params/conv1/kernel", [2], 0, -1, 0]
    with pytest.raises(FileError, match="layout: has an array twice; allowed is once"):
        sparse_file.decode(rewritten(trained, [row, row]), trained.metadata["model"])


def test_positions_that_no_array_has_are_refused():
    trained = small_networks.small("convnet")
    arrays, _ = container.decode(sparse_file.encode(trained))
    rows = json.loads(zlib.decompress(arrays["layout"].tobytes()))
    rows[-1][4] += 1
    with pytest.raises(FileError, match=r"positions: \d+ bytes; the layout declares \d+"):
        sparse_file.decode(rewritten(trained, rows), trained.metadata["model"])


@pytest.mark.parametrize("model", ["cnn", "tiny"])
def test_images_too_small_for_the_network_are_refused(model):
    content = rewritten(small_networks.small("convnet"), model=model, image_shape=[1, 1, 1])
    with pytest.raises(FileError, match=r"image_shape=\[1, 1, 1\]: allowed are sizes of the net"):
        sparse_file.decode(content)
