"""What an attack accepts: everything else is an error in one line, also where JAX is traced."""

import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_battery import ATTACKS

from harp_jax import attacks
from harp_jax.attacks import norms

COUNT, SHAPE, CLASSES = 5, (4, 4, 1), 3
WEIGHTS = jax.random.normal(jax.random.key(0), (16, CLASSES))
IMAGES = jax.random.uniform(jax.random.key(1), (COUNT, *SHAPE))
LABELS = jnp.arange(COUNT) % CLASSES
KEY = jax.random.key(2)
FMN = attacks.FMN(steps=3)
PARTS = ("APGD", "APGD-T", "FAB", "Square")  # AutoAttack has them all
every_class = pytest.mark.parametrize(
    "attack",
    [
        *(ATTACKS[name] for name in ("FGSM", "FGSM, L2", "PGD", "CW", "APGD", "FAB", "Square")),
        *(ATTACKS[name] for name in ("AutoAttack", "PGD, L2, margin, 3 restarts")),
        FMN,
    ],
    ids=repr,
)


@pytest.fixture(autouse=True)
def unchecked():
    """Annotations are not checked here, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def network(images):
    return (images.reshape(len(images), -1) - 0.5) @ WEIGHTS


def refusal(attack, **changed):
    arguments = {"logits_fn": network, "images": IMAGES, "labels": LABELS, "key": KEY}
    with pytest.raises(ValueError, match="; allowed") as caught:
        attack(**arguments | changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_ARRAYS = [
    ("images", (IMAGES * 255).astype(jnp.uint8), "images: of type uint8; allowed is float32"),
    ("images", np.asarray(IMAGES, np.int32), "images: of type int32"),
    ("images", IMAGES.astype(jnp.bfloat16), "images: of type bfloat16"),
    ("images", IMAGES.astype(jnp.float16), "images: of type float16"),
    ("images", IMAGES.reshape(COUNT, 16), "images: float32 of shape (5, 16)"),
    ("images", IMAGES[..., 0], "images: float32 of shape (5, 4, 4)"),
    ("images", IMAGES[:0], "images: float32 of shape (0, 4, 4, 1)"),
    ("images", IMAGES[:, :0], "images: float32 of shape (5, 0, 4, 1)"),
    ("labels", LABELS[:3], "labels: int32 of shape (3,); allowed are arrays [5]"),
    ("labels", jax.nn.one_hot(LABELS, 3), "labels: float32 of shape (5, 3)"),
    ("labels", LABELS.astype(jnp.float32), "labels: of type float32; allowed are whole numbers"),
    ("labels", LABELS > 1, "labels: of type bool"),
    ("key", jax.random.PRNGKey(0), "key: uint32 of shape (2,); allowed are keys of jax.random.key"),
    ("key", jax.random.split(KEY, 3), "key: key<fry> of shape (3,)"),
]
BAD_VALUES = [
    ("images", IMAGES * 255, "allowed are pixels in [0, 1]"),
    ("images", IMAGES * 2 - 1, "allowed are pixels in [0, 1]"),
    ("images", IMAGES.at[0, 0, 0, 0].set(jnp.nan), "images: from nan to nan"),
    ("images", IMAGES.at[0, 0, 0, 0].set(jnp.inf), "to inf"),
    ("images", IMAGES.tolist(), "images: a list"),
    ("labels", LABELS + 1, "labels: from 1 to 3; allowed are 0 to 2, logits_fn gives 3 logits"),
    ("labels", LABELS - 1, "labels: from -1 to 1"),
    ("labels", LABELS.tolist(), "labels: a list"),
    ("key", 0, "key: a int"),
    ("logits_fn", lambda x: network(x)[:, :1], "logits_fn: gives float32 of shape (5, 1)"),
    ("logits_fn", lambda x: network(x)[:, 0], "logits_fn: gives float32 of shape (5,)"),
    ("logits_fn", lambda x: network(x).argmax(-1), "logits_fn: gives int32 of shape (5,)"),
    ("logits_fn", lambda x: (network(x), x), "logits_fn: gives a tuple"),
]
without_keys = (attacks.FGSM, attacks.FMN)


@every_class
def test_what_does_not_fit_is_one_line(attack):
    for name, value, text in [*BAD_ARRAYS, *BAD_VALUES]:
        if name == "key" and isinstance(attack, without_keys):
            continue
        assert text in refusal(attack, **{name: value})


@every_class
def test_types_and_shapes_are_refused_while_tracing(attack):
    for name, value, text in BAD_ARRAYS:
        if name == "key" and isinstance(attack, without_keys):
            continue

        def call(value, name=name):
            arguments = {"logits_fn": network, "images": IMAGES, "labels": LABELS, "key": KEY}
            return attack(**arguments | {name: value})

        with pytest.raises(ValueError, match="; allowed") as caught:
            jax.eval_shape(call, value)
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(ATTACKS[name], marks=pytest.mark.slow if name in PARTS else (), id=name)
        for name in ("FGSM", "PGD", "CW", "AutoAttack", *PARTS)
    ],
)
def test_numpy_and_other_whole_numbers_change_nothing(attack):
    run = jax.jit(lambda images, labels: attack(network, images, labels, KEY))
    expected = run(IMAGES, LABELS)
    found = run(np.asarray(IMAGES), np.asarray(LABELS, np.uint8))
    np.testing.assert_array_equal(found, expected)


FAST = [
    attacks.FGSM(0.3),
    attacks.FGSM(0.3, norm="l2"),
    attacks.PGD(0.3, 0.2, steps=2),
    attacks.PGD(0.3, 0.2, steps=2, norm="l2", objective="dlr"),
    attacks.CW(0.3, 0.2, steps=2),
    attacks.APGD(0.3, steps=2),
]
SHAPES = [(4, 4, 4, 1), (3, 16), (2, 4, 4), (2, 2, 2, 4), (0, 4, 4, 1), (1, 16, 1, 1)]
DTYPES = ["float32", "float16", "bfloat16", "uint8", "int32", "bool"]
RANGES = [(0.0, 1.0), (0.0, 1e-30), (0.2, 0.7), (1.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 1.001)]
LABEL_TYPES = ["int32", "uint8", "float32", "bool"]


def test_gradients_that_are_not_numbers_move_no_pixel():
    direction = jnp.asarray([jnp.nan, 2.0, -0.5, 0.0]).reshape(1, 2, 2, 1)
    moved = norms.ascend(IMAGES[:1, :2, :2], direction, 0.1) - IMAGES[:1, :2, :2]
    np.testing.assert_allclose(moved.ravel(), [0, 0.1, -0.1, 0], atol=1e-6)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    attack=st.sampled_from(FAST),
    shape=st.sampled_from(SHAPES),
    dtype=st.sampled_from(["float32", *DTYPES]),
    limits=st.sampled_from(RANGES),
    labels=st.tuples(st.integers(-1, 2), st.integers(0, 3), st.sampled_from(LABEL_TYPES)),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e30]),
    number=st.integers(0, 2**31),
)
def test_any_input_is_refused_or_stays_in_ball_and_box(
    attack, shape, dtype, limits, labels, scale, number
):
    random = np.random.default_rng(number)
    images = jnp.asarray(random.uniform(*limits, shape)).astype(dtype)
    low, high, kind = labels
    classes = random.integers(low, max(high, low + 1), shape[0]).astype(kind)
    refused = ""
    try:
        found = attack(lambda x: scale * network(x), images, classes, jax.random.key(number))
    except ValueError as error:
        refused = str(error)
    if refused:
        assert re.fullmatch(r"(images|labels): .*; allowed .*", refused)
        return
    assert (images.dtype, images.ndim, kind in ("int32", "uint8")) == (jnp.float32, 4, True)
    assert limits in RANGES[:4] or (images.min() >= 0 and images.max() <= 1)
    assert found.shape == images.shape
    assert float(norms.largest(norms.excess(found, images, attack.epsilon, attack.norm))) < 1e-6
