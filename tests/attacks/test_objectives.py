"""Losses on logits whose values are worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from harp_jax.attacks import objectives

LOGITS = jnp.asarray([[4.0, 1.0, 3.0, -2.0], [4.0, 1.0, 3.0, -2.0]])
LABELS = jnp.asarray([0, 1])


def test_values_by_hand():
    assert_allclose(objectives.margin(LOGITS, LABELS), [3.0 - 4.0, 4.0 - 1.0])
    assert_allclose(objectives.dlr(LOGITS, LABELS), [-1 / (4 - 1), 3 / (4 - 1)])
    targeted = objectives.dlr_targeted(LOGITS, LABELS, jnp.asarray([3, 2]))
    below = 4 - (1 - 2) / 2
    assert_allclose(targeted, [(-2 - 4) / below, (3 - 1) / below])
    chance = np.exp([4.0, 1.0]) / np.exp([4.0, 1.0, 3.0, -2.0]).sum()
    assert_allclose(objectives.cross_entropy(LOGITS, LABELS), -np.log(chance), rtol=1e-6)


def test_wrong_classes_by_rank():
    ranks = [objectives.wrong_class(LOGITS, LABELS, rank) for rank in range(3)]
    assert_array_equal(ranks, [[2, 0], [1, 2], [3, 3]])
    assert_array_equal(objectives.wrong_class(LOGITS, LABELS, jnp.asarray([2, 0])), [3, 0])


def losses(name, logits, labels):
    if name == "dlr_targeted":
        return objectives.dlr_targeted(logits, labels, objectives.wrong_class(logits, labels, 0))
    return objectives.OBJECTIVES[name](logits, labels)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_gradient_step_helps_at_any_number_of_classes(name, classes):
    logits = jax.random.normal(jax.random.key(0), (16, classes))
    labels = logits.argmax(-1)

    @jax.jit
    def stepped(z):
        loss, pull = jax.vjp(lambda z: losses(name, z, labels), z)
        (gradient,) = pull(jnp.ones(16))
        return loss, gradient, losses(name, z + 1e-3 * gradient, labels)

    loss, gradient, after = stepped(logits)
    assert np.isfinite(gradient).all()
    assert (jnp.abs(gradient).max(-1) > 1e-3).all()
    assert (after > loss).all()


@pytest.mark.parametrize(("name", "classes"), [("dlr", 3), ("dlr", 10), ("dlr_targeted", 4)])
def test_ratios_depend_on_no_scale(name, classes):
    logits = jax.random.normal(jax.random.key(1), (16, classes))
    labels = jnp.arange(16) % classes
    assert_allclose(
        losses(name, 7 * logits + 3, labels), losses(name, logits, labels), rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_is_positive_exactly_where_misclassified(name):
    logits = jax.random.normal(jax.random.key(2), (64, 10))
    labels = jnp.where(jnp.arange(64) % 2 == 0, logits.argmax(-1), jnp.arange(64) % 10)
    loss = objectives.OBJECTIVES[name](logits, labels)
    assert_array_equal(loss > 0, logits.argmax(-1) != labels)
    assert (loss != 0).all()
