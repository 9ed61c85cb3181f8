"""`ops.conv_general_dilated` against `jax.lax.conv_general_dilated`."""

from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from harp_jax import ops

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def default_precision():
    """What users get; the other tests ask for the highest."""
    with jax.default_matmul_precision("default"):
        yield


def operands(images, filters, seed=0):
    # NumPy's numbers: JAX would compile a generator for every shape.
    random = np.random.default_rng(seed)
    return tuple(jnp.asarray(random.normal(size=s), jnp.float32) for s in (images, filters))


def convolution(convolve, strides, padding, **options) -> Callable:
    options = {"dimension_numbers": LAYOUT, **options}
    return lambda x, w: convolve(x, w, strides, padding, **options)


def with_gradients(function: Callable) -> Callable:
    """The value, and both gradients of its product with fixed numbers of either sign."""

    def run(x, w):
        value, vjp = jax.vjp(function, x, w)
        return value, *vjp(jnp.cos(jnp.arange(value.size, dtype=x.dtype)).reshape(value.shape))

    return run


def assert_same(actual, expected, tolerance=5e-6):
    """Equal up to rounding, relative to the largest element of each array."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a), np.asarray(b)
        scale = np.abs(b).max()
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


def pair(strides, padding, **options) -> tuple[Callable, Callable]:
    convolves = ops.conv_general_dilated, lax.conv_general_dilated
    ours, native = (convolution(f, strides, padding, **options) for f in convolves)
    return ours, native


CASES = {
    # The layers of the small network.
    "cnn-1": ((4, 28, 28, 1), (3, 3, 1, 16), (1, 1), "SAME"),
    "cnn-3": ((4, 7, 7, 32), (3, 3, 32, 64), (1, 1), "SAME"),
    # VGG16: the first layer, and the last block, whose kernels are larger than the images.
    "vgg-first": ((2, 32, 32, 3), (3, 3, 3, 64), (1, 1), "SAME"),
    "vgg-last": ((3, 2, 2, 24), (3, 3, 24, 40), (1, 1), "SAME"),
    "one-pixel": ((3, 1, 1, 8), (3, 3, 8, 6), (1, 1), ((1, 1), (1, 1))),
    # Residual networks: stride 2 in main paths, shortcuts and stems.
    "shortcut": ((3, 8, 8, 16), (1, 1, 16, 32), (2, 2), "SAME"),
    "shortcut-odd": ((3, 7, 9, 5), (1, 1, 5, 6), (2, 2), "VALID"),
    "pointwise-padded": ((3, 5, 6, 5), (1, 1, 5, 6), (1, 2), ((1, 2), (0, 1))),
    "down": ((2, 32, 32, 8), (3, 3, 8, 16), (2, 2), ((1, 1), (1, 1))),
    "down-odd": ((3, 9, 7, 8), (3, 3, 8, 16), (2, 2), ((1, 1), (1, 1))),
    "down-same": ((3, 10, 13, 8), (3, 3, 8, 6), (2, 2), "SAME"),
    "stem": ((2, 32, 30, 3), (7, 7, 3, 16), (2, 2), ((3, 3), (3, 3))),
    "stem-gray": ((2, 15, 18, 1), (5, 5, 1, 6), (2, 3), ((2, 2), (1, 0))),
    # Wide layers, in Winograd's form: whole tiles, and tiles that hang over.
    "wide": ((16, 8, 8, 80), (3, 3, 80, 96), (1, 1), "SAME"),
    "wide-odd": ((6, 11, 14, 128), (3, 3, 128, 112), (1, 1), ((2, 0), (1, 3))),
    # Fewer pixels than channels.
    "deep": ((2, 4, 4, 24), (3, 3, 24, 40), (1, 1), "SAME"),
    "deep-odd": ((2, 4, 5, 8), (2, 3, 8, 64), (1, 1), ((2, 0), (1, 3))),
    # Shapes beyond the networks.
    "valid": ((3, 9, 8, 5), (3, 2, 5, 6), (1, 1), "VALID"),
    "uneven": ((3, 9, 8, 5), (3, 4, 5, 6), (2, 1), ((2, 0), (0, 3))),
    "steps-over": ((3, 11, 9, 5), (2, 2, 5, 6), (3, 3), "VALID"),
    "same-lower": ((3, 6, 7, 5), (4, 4, 5, 6), (1, 1), "SAME_LOWER"),
    "few-outputs": ((3, 8, 9, 6), (3, 5, 6, 2), (1, 1), "SAME"),
    "wide-padding": ((2, 5, 5, 4), (3, 3, 4, 6), (1, 1), ((4, 4), (3, 5))),
    "batch-1": ((1, 8, 8, 16), (3, 3, 16, 16), (1, 1), "SAME"),
}


@pytest.mark.parametrize("padding", [((4, 0), (4, 0)), ((0, 5), (3, 1)), ((-1, 2), (-2, 3))])
def test_padding_beyond_the_kernel_and_cropping(padding):
    x, w = (
        jax.random.normal(jax.random.key(n), s) for n, s in enumerate([(2, 5, 6, 8), (3, 3, 8, 5)])
    )
    edges = ((0, 0, 0), *((*pad, 0) for pad in padding), (0, 0, 0))

    def convolve(x, w, own):
        images, pads = (x, padding) if own else (lax.pad(x, jnp.float32(0), edges), "VALID")
        function = ops.conv_general_dilated if own else lax.conv_general_dilated
        return function(images, w, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def with_gradients(x, w, own):
        y, pull_back = jax.vjp(lambda x, w: convolve(x, w, own), x, w)
        return y, *pull_back(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    run = jax.jit(with_gradients, static_argnums=2)
    for found, expected in zip(run(x, w, True), run(x, w, False), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_value_and_gradients(case):
    images, filters, strides, padding = case
    arguments = operands(images, filters)
    both = [with_gradients(f) for f in pair(strides, padding)]
    ours, native = jax.jit(lambda x, w: [f(x, w) for f in both])(*arguments)
    # Winograd's form of the wide layers rounds more.
    assert_same(ours, native, 1e-5 if filters[2] >= 80 else 5e-6)


def test_wide_layers_are_winograds_unless_the_highest_precision_is_asked_for():
    images, filters, strides, padding = CASES["wide"]
    x, w = operands(images, filters)
    exact = with_gradients(pair(strides, padding)[1])
    with jax.enable_x64(True):
        exact = jax.device_get(jax.jit(exact)(np.float64(x), np.float64(w)))

    def run(function):
        function = with_gradients(function)
        actual = jax.device_get(jax.jit(function)(x, w))
        errors = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), actual, exact)
        return convolutions(function, (x, w)), max(errors)

    ours, native = pair(strides, padding)
    highest, _ = pair(strides, padding, precision=lax.Precision.HIGHEST)
    count, error = run(ours)
    assert count == 0
    assert error < 1e-5
    _, plain_error = run(native)
    for function in (highest, jax.default_matmul_precision("highest")(ours)):
        count, error = run(function)
        assert count >= 3
        assert error < 2 * plain_error


def test_strided_gradient_on_a_tiny_image_by_hand():
    # Filters of 3x3, stride 2, padding 1, image 2x2: the one output pixel sees w[1:, 1:].
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    w = jnp.arange(9.0).reshape(3, 3, 1, 1)
    ours, _ = pair((2, 2), ((1, 1), (1, 1)))

    @jax.jit
    def run(x, w):
        value, vjp = jax.vjp(ours, x, w)
        return value, *vjp(jnp.full_like(value, 10.0))

    value, images, filters = run(x, w)
    assert value.tolist() == [[[[1 * 4 + 2 * 5 + 3 * 7 + 4 * 8]]]]
    assert images.squeeze().tolist() == [[40, 50], [70, 80]]
    assert filters.squeeze().tolist() == [[0, 0, 0], [0, 10, 20], [0, 30, 40]]


def test_kernel_gradient_in_pieces_is_that_of_the_whole_batch():
    arguments = operands((7, 48, 48, 8), (3, 3, 8, 64))
    ours, native = (lambda x, w, f=f: with_gradients(f)(x, w)[2] for f in pair((1, 1), "SAME"))
    # 4.6 MB of images and gradients: four pieces of unequal size.
    assert convolutions(ours, arguments) == 4
    assert_same(jax.jit(ours)(*arguments), jax.jit(native)(*arguments), 1e-5)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap(axes):
    shapes = (2, 6, 6, 4), (3, 3, 4, 5)
    x, w = operands(*((3, *s) if a == 0 else s for a, s in zip(axes, shapes, strict=True)))
    ours, native = (jax.jit(jax.vmap(with_gradients(f), axes)) for f in pair((2, 2), "SAME"))
    assert_same(ours(x, w), native(x, w))


def test_gradient_inside_loops():
    x, w = operands((2, 8, 8, 3), (3, 3, 3, 8))

    def ascend(function):
        def objective(x, w):
            return jnp.tanh(function(x, w)).sum()

        def run(x, w):
            x = lax.fori_loop(0, 3, lambda _, x: x + 0.1 * jax.grad(objective)(x, w), x)
            step = lambda w, _: (w + 0.1 * jax.grad(objective, 1)(x, w), w[0, 0, 0, 0])  # noqa: E731
            return x, lax.scan(step, w, length=3)

        return jax.jit(run)(x, w)

    ours, native = pair((1, 1), "SAME")
    assert_same(ascend(ours), ascend(native), 1e-5)


def test_gradient_through_scan_and_checkpoint():
    x, w = operands((2, 8, 8, 4), (3, 3, 4, 4))

    def objective(function):
        layer = jax.checkpoint(lambda x, w: jnp.tanh(function(x, w)))
        return lambda x, w: lax.scan(lambda x, _: (layer(x, w), None), x, length=3)[0].sum()

    ours, native = (jax.jit(jax.grad(objective(f), (0, 1)))(x, w) for f in pair((1, 1), "SAME"))
    assert_same(ours, native, 1e-5)


def test_pmap():
    x, w = operands((1, 2, 8, 8, 4), (1, 3, 3, 4, 5))
    ours, native = (jax.pmap(with_gradients(f)) for f in pair((1, 1), "SAME"))
    assert_same(ours(x, w), native(x, w))


def programs(function, arguments, platforms) -> list[str]:
    """The programs for platforms that need not be here."""
    traced = jax.jit(function).trace(*arguments)
    return [traced.lower(lowering_platforms=(name,)).as_text() for name in platforms]


def convolutions(function, arguments) -> int:
    """Number of convolutions in the program for CPUs."""
    (program,) = programs(function, arguments, ["cpu"])
    return program.count("stablehlo.convolution")


@pytest.mark.parametrize("case", ["cnn-1", "vgg-last", "shortcut", "down", "few-outputs"])
def test_other_platforms_run_the_native_convolution(case):
    images, filters, strides, padding = CASES[case]
    arguments = operands(images, filters)
    kinds = "convolution", "dot_general", "concatenate", "pad", "slice"
    ours, native = (
        [
            {kind: program.count(f"stablehlo.{kind}") for kind in kinds}
            for program in programs(with_gradients(f), arguments, ["cuda", "tpu"])
        ]
        for f in pair(strides, padding)
    )
    assert [counts["convolution"] for counts in native] == [3, 3]
    assert ours == native


def test_cpu_program_multiplies_matrices_instead():
    images, filters, strides, padding = CASES["vgg-last"]
    ours, native = pair(strides, padding)
    assert convolutions(with_gradients(ours), operands(images, filters)) == 0
    assert convolutions(with_gradients(native), operands(images, filters)) == 3


def test_one_program_for_several_platforms():
    x, w = operands((2, 2, 2, 4), (3, 3, 4, 5))
    ours, native = pair((1, 1), "SAME")
    function = jax.jit(with_gradients(ours))
    exported = jax.export.export(function, platforms=["cpu", "cuda"])(x, w)
    assert_same(exported.call(x, w), with_gradients(native)(x, w))


FALLBACKS = {
    "groups": ((2, 6, 6, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "image-dilation": (
        (2, 6, 6, 4),
        (3, 3, 4, 6),
        {"lhs_dilation": (2, 1), "padding": ((1, 1), (0, 2))},
    ),
    "kernel-dilation": ((2, 6, 6, 4), (3, 3, 4, 6), {"rhs_dilation": (1, 2)}),
    "default-layout": ((2, 4, 6, 6), (6, 4, 3, 3), {"dimension_numbers": None}),
    "other-layout": ((2, 4, 6, 6), (3, 3, 4, 6), {"dimension_numbers": ("NCHW", "HWIO", "NHWC")}),
    "batch-groups": ((4, 6, 6, 4), (3, 3, 4, 6), {"batch_group_count": 2}),
    "result-type": ((2, 6, 6, 4), (3, 3, 4, 6), {"preferred_element_type": jnp.float64}),
}


@pytest.mark.parametrize("case", FALLBACKS.values(), ids=FALLBACKS.keys())
def test_everything_else_is_the_native_convolution(case):
    images, filters, options = case
    arguments = operands(images, filters)
    ours, native = pair((1, 1), **{"padding": "SAME", **options})
    with jax.enable_x64(True):
        assert str(jax.make_jaxpr(ours)(*arguments)) == str(jax.make_jaxpr(native)(*arguments))


@pytest.mark.parametrize(
    ("images", "filters", "layout", "padding"),
    [
        ((2, 9, 4), (3, 4, 6), ("NWC", "WIO", "NWC"), "SAME"),
        ((2, 9, 9, 4), (3, 3, 4, 6), LAYOUT, ((-1, 0), (0, -2))),
        ((0, 9, 9, 4), (3, 3, 4, 6), LAYOUT, "SAME"),
        ((2, 2, 2, 4), (3, 3, 4, 6), LAYOUT, "VALID"),
    ],
    ids=["one-dimensional", "cropping", "no-images", "no-output"],
)
def test_degenerate_shapes_are_the_native_convolution(images, filters, layout, padding):
    arguments = operands(images, filters)
    ours, native = pair((1,) * (len(images) - 2), padding, dimension_numbers=layout)
    assert str(jax.make_jaxpr(ours)(*arguments)) == str(jax.make_jaxpr(native)(*arguments))


def test_half_precision_is_the_native_convolution():
    x, w = (a.astype(jnp.bfloat16) for a in operands((2, 6, 6, 4), (3, 3, 4, 6)))
    ours, native = pair((1, 1), "SAME")
    assert str(jax.make_jaxpr(ours)(x, w)) == str(jax.make_jaxpr(native)(x, w))


def test_mistakes_raise_the_errors_of_lax():
    x, w = operands((2, 6, 6, 4), (3, 3, 5, 6))
    for function in pair((1, 1), "SAME"):
        with pytest.raises(ValueError, match="feature dimension"):
            function(x, w)


@pytest.mark.parametrize(
    ("strides", "padding"),
    [
        (1, "SAME"),
        ((2, 2), "VALID"),
        (1, 1),
        (2, ((1, 1), (1, 1))),
        ((2, 2), (2, (0, 1))),
    ],
    ids=str,
)
def test_linen_layer(strides, padding):
    x, _ = operands((2, 7, 8, 3), ())
    native = nn.Conv(8, (3, 3), strides=strides, padding=padding)
    ours = native.clone(conv_general_dilated=ops.conv_general_dilated)
    kernel, bias = operands((3, 3, 3, 8), (8,), seed=1)
    variables = {"params": {"kernel": kernel, "bias": bias}}

    def run(layer):
        function = lambda variables, x: jnp.sin(layer.apply(variables, x)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(function, (0, 1)))(variables, x)

    assert_same(run(ours), run(native))


def test_a_symbolic_batch_size_is_left_to_jax():
    (batch,) = jax.export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, 8, 8, 64), jnp.float32)
    w = jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)

    def conv(x, w):
        layout = ("NHWC", "HWIO", "NHWC")
        y = ops.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)
        return ops.max_pool(y, (2, 2), (2, 2))

    program = jax.make_jaxpr(conv)(x, w)
    names = [equation.primitive.name for equation in program.eqns]
    assert names == ["conv_general_dilated", "reduce_window_max"]
