"""Sparse convolution against the dense one of XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from harp_jax import native
from harp_jax.ops.sparse_conv import Kept, conv

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler")

SHAPES = st.tuples(st.sampled_from([1, 3, 7]), st.integers(1, 5), st.integers(1, 5))


def dense(images, kernel, strides, padding):
    # Pads first: XLA:CPU may be wrong for negative padding (openxla/xla issue 48713), which the
    # gradient of a convolution has whose padding exceeds its kernel.
    edges = ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0))
    return lax.conv_general_dilated(
        lax.pad(images, jnp.float32(0), edges),
        kernel,
        strides,
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def assert_close(found, expected):
    scale = max(np.abs(expected).max(initial=0), 1.0)  # of the terms of a sum, which may cancel
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=2e-6)


def assert_as_dense(images, kernel, strides, padding, seed=0):
    """Compares values and both gradients, for a random gradient of the output."""
    kept = Kept.of(np.asarray(kernel) != 0)

    @jax.jit
    def both(images, kernel, gradient):
        expected, of_dense = jax.vjp(
            lambda images, kernel: dense(images, kernel, strides, padding), images, kernel
        )
        found, of_sparse = jax.vjp(
            lambda images, values: conv(images, values, kept, strides, padding),
            images,
            kept.values(kernel),
        )
        images_gradient, kernel_gradient = of_dense(gradient)
        expected = expected, images_gradient, kept.values(kernel_gradient)
        return (found, *of_sparse(gradient)), expected

    shape = jax.eval_shape(lambda: dense(images, kernel, strides, padding)).shape
    gradient = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for found, expected in zip(*both(images, kernel, gradient), strict=True):
        assert_close(found, expected)


@settings(max_examples=15, deadline=None)
@given(
    shape=SHAPES,
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    batch=st.sampled_from([1, 3, 16, 17, 37, 64, 100]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    pads=st.tuples(*(st.integers(-1, 3) for _ in range(4))),
    rate=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradients_are_those_of_the_dense_convolution(
    shape, size, batch, strides, pads, rate, seed
):
    (kernel_size, inputs, outputs), generator = shape, np.random.default_rng(seed)
    low, high = (max(0, kernel_size - edge) for edge in size)  # so that the kernel fits
    padding = ((max(pads[0], 0) + low, pads[1]), (max(pads[2], 0) + high, pads[3]))
    if any(edge + sum(pad) < kernel_size for edge, pad in zip(size, padding, strict=True)):
        padding = ((kernel_size, kernel_size),) * 2
    kernel = generator.normal(size=(kernel_size, kernel_size, inputs, outputs))
    kernel *= generator.random(kernel.shape) < rate
    images = generator.normal(size=(batch, *size, inputs))
    assert_as_dense(
        jnp.asarray(images, jnp.float32), jnp.asarray(kernel, jnp.float32), strides, padding, seed
    )


@pytest.mark.parametrize("kept", [[], [(0, 0, 0, 0)], [(2, 2, 1, 2)], [(1, 1, 0, 1), (1, 1, 1, 1)]])
def test_single_weights(kept):
    generator = np.random.default_rng(0)
    kernel = np.zeros((3, 3, 2, 3), np.float32)
    for place in kept:
        kernel[place] = generator.normal()
    images = generator.normal(size=(20, 5, 6, 2)).astype(np.float32)
    assert_as_dense(jnp.asarray(images), jnp.asarray(kernel), (1, 1), ((1, 1), (1, 1)))


def test_kept_weights_are_in_a_fixed_order():
    mask = np.zeros((1, 2, 2, 2), bool)
    mask[0, 1, 0, 1] = mask[0, 0, 1, 0] = mask[0, 0, 0, 1] = True
    kept = Kept.of(mask)
    assert kept.index.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 1]]
    kernel = np.arange(8, dtype=np.float32).reshape(mask.shape)
    assert kept.values(jnp.asarray(kernel)).tolist() == [2, 1, 5]


@pytest.mark.parametrize("batch", [2, pytest.param(70, marks=pytest.mark.slow)])
def test_threads_give_the_same_bits(monkeypatch, batch):
    generator = np.random.default_rng(0)
    kernel = (generator.random((3, 3, 64, 64)) < 0.2) * generator.normal(size=(3, 3, 64, 64))
    kept = Kept.of(kernel != 0)
    values = kept.values(jnp.asarray(kernel, jnp.float32))
    images = jnp.asarray(generator.normal(size=(batch, 33, 31, 64)), jnp.float32)

    def computed(devices):
        monkeypatch.setattr(jax, "local_device_count", lambda _: devices)
        out, back = jax.vjp(lambda x: conv(x, values, kept, (1, 1), ((1, 1), (1, 1))), images)
        return np.asarray(out), np.asarray(back(out)[0])

    for _ in range(3):
        for one, several in zip(computed(1000), computed(1), strict=True):
            np.testing.assert_array_equal(one, several)


def test_what_does_not_fit_is_refused():
    kept = Kept.of(np.ones((1, 1, 2, 3), bool))
    images = jnp.zeros((1, 4, 4, 5))
    with pytest.raises(ValueError, match="5 channels; allowed are 2"):
        conv(images, jnp.zeros(6), kept, (1, 1), ((0, 0), (0, 0)))
    with pytest.raises(ValueError, match=r"shape \(4,\); allowed is \(6,\)"):
        conv(images[..., :2], jnp.zeros(4), kept, (1, 1), ((0, 0), (0, 0)))
