"""The training losses by hand, and where rounding and overflow would show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from harp_jax import losses

LABELS = jnp.array([0, 2])
CLEAN = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
ADVERSARIAL = np.array([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]])
CLEAN_LOGITS, ADVERSARIAL_LOGITS = (jnp.float32(np.log(p)) for p in (CLEAN, ADVERSARIAL))
DIVERGENCE = (CLEAN * np.log(CLEAN / ADVERSARIAL)).sum(1)


def test_trades_by_hand():
    expected = -np.log([0.7, 0.4]).mean() + 3 * DIVERGENCE.mean()
    found = losses.trades(CLEAN_LOGITS, ADVERSARIAL_LOGITS, LABELS, 3.0)
    assert_allclose(found, expected, rtol=1e-6)


def test_mart_by_hand():
    boosted = -np.log([0.2, 0.7]) - np.log(1.0001 - np.array([0.7, 0.2]))
    expected = (boosted + 3 * DIVERGENCE * (1 - np.array([0.7, 0.4]))).mean()
    found = losses.mart(CLEAN_LOGITS, ADVERSARIAL_LOGITS, LABELS, 3.0)
    assert_allclose(found, expected, rtol=1e-6)


def test_nothing_but_the_clean_loss_is_left_where_nothing_changed():
    found = losses.trades(CLEAN_LOGITS, CLEAN_LOGITS, LABELS, 3.0)
    assert_allclose(found, losses.natural(CLEAN_LOGITS, LABELS), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.trades, losses.mart])
def test_gradients_are_those_of_finite_differences(loss):
    directions = jax.random.normal(jax.random.key(0), (2, 2, 3))

    @jax.jit
    def along(step):
        moved = (CLEAN_LOGITS + step * directions[0], ADVERSARIAL_LOGITS + step * directions[1])
        return loss(*moved, LABELS)

    step = 1e-2
    difference = (along(step) - along(-step)) / (2 * step)
    assert abs(difference) > 0.1
    assert_allclose(jax.grad(along)(0.0), difference, rtol=2e-3)


@pytest.mark.parametrize("loss", [losses.trades, losses.mart])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_confident_logits_give_finite_losses_and_gradients(loss, size):
    """Probabilities of 0 and 1 in float32, of right and of wrong classes."""
    clean = size * jnp.array([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    value, gradients = jax.value_and_grad(loss, (0, 1))(clean, -clean, LABELS)
    assert np.isfinite(value)
    assert value > 1
    assert np.isfinite(gradients).all()
