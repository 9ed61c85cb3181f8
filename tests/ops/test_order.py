"""`ops.order`: what is computed late stays out of memory until then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from harp_jax.ops import conv_general_dilated, order, sparse_conv, winograd

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3.0, np.inf, -np.inf, np.nan])
def test_it_is_zero_whatever_the_array_holds(value):
    assert jax.jit(order.zero_after)(jnp.full((2, 3), value)) == 0


def temporaries(function, *arguments) -> int:
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_tiles_of_the_forward_pass_are_not_kept_for_the_kernel_gradients(monkeypatch):
    images = jnp.ones((16, 16, 16, 64))
    kernels = [jnp.ones((3, 3, 64, 64))] * 4

    def loss(kernels, x):
        for w in kernels:
            x = jnp.tanh(conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=LAYOUT))
        return x.sum()

    with jax.default_matmul_precision("default"):
        late = temporaries(jax.grad(loss), kernels, images)
        jax.clear_caches()
        monkeypatch.setattr(winograd, "zero_after", lambda array: jnp.zeros((), array.dtype))
        early = temporaries(jax.grad(loss), kernels, images)
    tiles = 2.25 * images.nbytes
    assert early - late > 2 * tiles


def test_gradients_of_kept_weights_are_made_one_by_one(monkeypatch):
    shape = (3, 3, 128, 128)
    mask = np.random.default_rng(0).random(shape) < 0.01
    kept = sparse_conv.Kept.of(mask)
    kernels = [jnp.ones(shape)] * 4

    def step(kernels):
        def loss(kernels):
            total = jnp.zeros(())
            for kernel in kernels:
                total = jnp.sin(total + kept.values(kernel).sum())
            return total

        return [jnp.sum(gradient**2) for gradient in jax.grad(loss)(kernels)]

    late = temporaries(step, kernels)
    jax.clear_caches()
    monkeypatch.setattr(sparse_conv, "zero_after", lambda array: jnp.zeros((), array.dtype))
    early = temporaries(step, kernels)
    assert late < early
    gradient = jax.grad(
        lambda kernel: jnp.dot(kept.values(kernel), jnp.arange(1.0, mask.sum() + 1))
    )
    expected = np.zeros(shape)
    expected[tuple(kept.index.T)] = np.arange(1, mask.sum() + 1)
    np.testing.assert_array_equal(gradient(kernels[0]), expected)
