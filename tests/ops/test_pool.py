"""`ops.max_pool` against `flax.linen.max_pool`."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from harp_jax import native, ops
from harp_jax.ops.pool import batch_last_max_pool


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def with_gradient(pool, *arguments):
    def run(x):
        value, vjp = jax.vjp(lambda x: pool(x, *arguments), x)
        return value, *vjp(jnp.cos(jnp.arange(value.size, dtype=x.dtype)).reshape(value.shape))

    return run


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "padding"),
    [
        ((3, 6, 8, 5), "VALID"),
        ((3, 6, 8, 5), "SAME"),
        ((3, 7, 9, 5), ((0, 0), (0, 0))),
        ((3, 6, 3, 5), "VALID"),
    ],
    ids=["even", "same", "odd", "odd-width"],
)
def test_pairs_of_rows_and_columns(shape, padding):
    x = normal(shape)
    arguments = (2, 2), (2, 2), padding
    assert_equal(
        jax.jit(with_gradient(ops.max_pool, *arguments))(x),
        jax.jit(with_gradient(nn.max_pool, *arguments))(x),
    )


def test_gradient_goes_to_the_first_maximum():
    x = jnp.array([[5.0, 5, 1, 7], [5, 5, 7, 7], [0, 2, 3, 3], [2, 2, 9, 3]]).reshape(1, 4, 4, 1)
    function = with_gradient(ops.max_pool, (2, 2), (2, 2))
    value, gradient = jax.vjp(lambda x: ops.max_pool(x, (2, 2), (2, 2)), x)
    assert value.squeeze().tolist() == [[5, 7], [2, 9]]
    (gradient,) = gradient(jnp.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1))
    assert gradient.squeeze().tolist() == [[1, 0, 0, 2], [0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 4, 0]]
    assert_equal(function(x), with_gradient(nn.max_pool, (2, 2), (2, 2))(x))


def test_many_ties_after_relu():
    x = nn.relu(normal((4, 8, 8, 16)).round())
    both = [with_gradient(pool, (2, 2), (2, 2)) for pool in (ops.max_pool, nn.max_pool)]
    assert_equal(*jax.jit(lambda x: [function(x) for function in both])(x))


def test_inside_vmap_loop_and_pmap():
    x = normal((1, 3, 2, 4, 6, 5))

    def ascend(pool):
        def step(_, x):
            return x + 0.1 * jax.grad(lambda x: (pool(x, (2, 2), (2, 2)) ** 2).sum())(x)

        return jax.pmap(jax.vmap(lambda x: lax.fori_loop(0, 3, step, x)))(x)

    np.testing.assert_allclose(ascend(ops.max_pool), ascend(nn.max_pool), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((2, 1, 8, 3), ((2, 2), (2, 2))),
        ((2, 8, 7, 3), ((2, 2), (2, 2), "SAME")),
        ((2, 8, 8, 3), ((3, 3), (2, 2), "SAME")),
        ((2, 8, 8, 3), ((2, 2),)),
        ((2, 8, 8, 3), ((2, 2), (2, 2), ((1, 1), (0, 0)))),
        ((2, 8, 8, 3), ((2, 2), (2, 2), ((0, 0), (1, -1)))),
        ((8, 8, 3), ((2, 2), (2, 2))),
        ((0, 8, 8, 3), ((2, 2), (2, 2))),
    ],
    ids=[
        "one-row",
        "odd-width-padded",
        "window-3",
        "stride-1",
        "padded",
        "moved",
        "one-image",
        "no-images",
    ],
)
def test_everything_else_is_the_pool_of_linen(shape, arguments):
    x = normal(shape)
    ours, native = with_gradient(ops.max_pool, *arguments), with_gradient(nn.max_pool, *arguments)
    assert str(jax.make_jaxpr(ours)(x)) == str(jax.make_jaxpr(native)(x))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_other_platforms_run_the_pool_of_linen(platform):
    x = jnp.zeros((2, 8, 8, 3))
    counts = []
    for pool in (ops.max_pool, nn.max_pool):
        function = jax.jit(with_gradient(pool, (2, 2), (2, 2)))
        module = jax.export.export(function, platforms=[platform])(x).mlir_module()
        kinds = "reduce_window", "select_and_scatter", "slice", "concatenate", "compare"
        counts.append({kind: module.count(f'"stablehlo.{kind}"') for kind in kinds})
    assert counts[1]["select_and_scatter"] == 1
    assert counts[0]["select_and_scatter"] == 1
    assert counts[0]["slice"] == counts[0]["concatenate"] == 0


def test_cpu_program_needs_no_scatter():
    function = jax.jit(with_gradient(ops.max_pool, (2, 2), (2, 2)))
    module = jax.export.export(function, platforms=["cpu"])(jnp.zeros((2, 8, 8, 3))).mlir_module()
    assert module.count("select_and_scatter") == 0


@pytest.mark.skipif(not native.available(), reason="no C++ compiler")
@pytest.mark.parametrize("shape", [(16, 4, 6, 3), (5, 7, 9, 3), (1, 2, 2, 1), (64, 3, 2, 1)])
def test_with_the_batch_last_in_memory_it_is_the_same(shape):
    x = nn.relu(3 * normal(shape)).round()  # many ties
    for images in (x, x.at[0, :2, :2].set(jnp.nan), x.at[-1, 1, 0].set(jnp.nan)):
        assert_equal(
            jax.jit(with_gradient(batch_last_max_pool))(images),
            jax.jit(with_gradient(ops.max_pool, (2, 2), (2, 2)))(images),
        )
