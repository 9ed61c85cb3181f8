"""Small pruned networks that run natively, held against JAX."""

import concurrent.futures
import logging
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import small_networks
from hypothesis import given, settings
from hypothesis import strategies as st

import harp_jax
from harp_jax import models, native
from harp_jax.export.native_network import for_few_images, native_network

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")


class Layers(nn.Module):
    """Two convolutions around a pool, with a residual addition, and a dense layer."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: Any
    pool: str
    end: str
    dilation: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.relu(
            nn.Conv(5, self.kernel, self.strides, self.padding, 1, self.dilation)(images * 2 - 1)
        )
        if self.pool != "none" and min(x.shape[1:3]) > 1:
            kind = getattr(nn, f"{self.pool}_pool")
            x = kind(x, (2, 2), (2, 2)) if self.kernel[0] < 3 else kind(x, (2, 3), (2, 1), "SAME")
        x = x + nn.Dense(5)(nn.relu(x))
        x = nn.Conv(4, (3, 3), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = x.mean((1, 2)) if self.end == "mean" else x.reshape(len(x), -1)
        return nn.Dense(3)(x)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
sides = st.tuples(st.integers(0, 2), st.integers(0, 2))


def pruned(network, shape, share, seed):
    """Random arrays of a network; of the kernels a share is kept."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, *shape), np.float32))

    def fill(path, leaf):
        array = np.float32(random.uniform(0.5, 1.5, leaf.shape))
        if path[-1].key == "var":
            return array
        array *= random.choice([-1, 1], leaf.shape)
        return array * (random.random(leaf.shape) < share) if path[-1].key == "kernel" else array

    return jax.tree_util.tree_map_with_path(fill, shapes)


@settings(max_examples=10, deadline=None)
@given(
    kernel=pairs,
    strides=pairs,
    dilation=pairs,
    padding=st.one_of(st.just("SAME"), st.tuples(sides, sides)),
    pool=st.sampled_from(["max", "avg", "none"]),
    end=st.sampled_from(["mean", "flat"]),
    share=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    size=st.tuples(st.integers(7, 20), st.integers(7, 20), st.integers(1, 3)),
)
def test_logits_are_those_of_jax(kernel, strides, dilation, padding, pool, end, share, size):
    network = Layers(kernel, strides, padding, pool, end, dilation)
    variables = pruned(network, size, share, seed=1)
    images = np.random.default_rng(0).random((3, *size), np.float32)
    expected = network.apply(variables, images)
    logits = native_network(network, variables, size)(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    ["tiny", "cnn", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet18", "wrn_28_4"))],
)
def test_networks_of_the_table(name):
    shape = (8, 8, 1) if name == "tiny" else (28, 28, 1) if name == "cnn" else (16, 16, 3)
    means = [[0.4] * shape[-1], [0.3] * shape[-1]]
    network = models.create(name, 10, normalization=means)
    variables = pruned(network, shape, 0.05, seed=2)
    images = np.random.default_rng(0).random((2, *shape), np.float32)
    expected = jax.jit(models.logits_fn(network, variables))(images)
    logits = native_network(network, variables, shape)(images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SIZE = (11, 9, 2)
NETWORK = Layers((3, 3), (1, 1), "SAME", "max", "mean")


@pytest.fixture(scope="module")
def run():
    return native_network(NETWORK, pruned(NETWORK, SIZE, 0.5, seed=3), SIZE)


def test_what_is_no_number_stays_none(run):
    images = np.full((2, *SIZE), 0.5, np.float32)
    images[1] = np.nan
    assert np.isfinite(run(images)[0]).all()
    assert np.isnan(run(images)[1]).all()


def test_images_of_any_type_and_order(run):
    images = np.random.default_rng(0).random((2, *SIZE[::-1])).T.transpose(3, 0, 1, 2)
    assert images.dtype == np.float64
    assert not images.flags.c_contiguous
    np.testing.assert_array_equal(run(images), run(np.ascontiguousarray(images, np.float32)))


def test_images_of_another_size_are_refused(run):
    with pytest.raises(ValueError, match=r"shape \(9, 11, 2\): allowed are \(11, 9, 2\)"):
        run(np.zeros((1, 9, 11, 2), np.float32))


def test_many_threads_at_once(run):
    images = np.random.default_rng(0).random((64, 1, *SIZE), np.float32)
    expected = [run(image) for image in images]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        np.testing.assert_array_equal(list(pool.map(run, images)), expected)


class Other(nn.Module):
    """A step without a native form."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Dense(3)(nn.softmax(images.reshape(len(images), -1)))


@pytest.mark.parametrize(
    ("images", "natively"),
    [
        (np.zeros((1, *SIZE), np.float32), True),
        (np.zeros((4, *SIZE)), True),
        (np.zeros((5, *SIZE), np.float32), False),  # too many for the share that is kept
        (np.zeros((0, *SIZE), np.float32), False),
        (np.zeros((1, 9, 11, 2), np.float32), False),
        (np.zeros((1, *SIZE), np.uint8), False),
        (jax.numpy.zeros((1, *SIZE)), False),
    ],
)
def test_what_runs_natively(images, natively):
    variables = pruned(NETWORK, SIZE, 0.05, seed=3)
    logits_fn = for_few_images(lambda images: "compiled", NETWORK, variables, SIZE, 0.05)
    if natively:
        assert logits_fn(images).shape == (len(images), 3)
    else:
        assert logits_fn(images) == "compiled"


def test_other_networks_run_in_jax(caplog):
    variables = pruned(Other(), SIZE, 0.05, seed=3)
    logits_fn = for_few_images(lambda images: "compiled", Other(), variables, SIZE, 0.05)
    with caplog.at_level(logging.INFO):
        assert logits_fn(np.zeros((1, *SIZE), np.float32)) == "compiled"
    assert "no native network" in caplog.text


def test_a_sparse_file_runs_natively_for_one_image(tmp_path):
    trained = small_networks.pruned(
        small_networks.wider(num_classes=10), "small_networks:wider", kept=0.05
    )
    harp_jax.export.write(trained, tmp_path / "file", "sparse")
    logits_fn, _ = harp_jax.load(tmp_path / "file", model="small_networks:wider")
    images = 1000 * np.asarray(small_networks.images(trained, 20))
    assert isinstance(logits_fn(images[:1]), np.ndarray)
    logits = np.asarray(logits_fn(images))
    np.testing.assert_allclose(logits_fn(images[:1]), logits[:1], rtol=0, atol=1e-5)
    assert logits.std(0).max() > 0.1
