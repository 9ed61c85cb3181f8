"""Attacks in small groups against the same attacks on a whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harp_jax.attacks import APGD, PGD
from harp_jax.attacks.groups import InGroups, group_size

EXAMPLES = 24


@given(st.integers(1, 500), st.integers(1, 40))
def test_groups_are_equal_and_at_least_half_of_the_largest_size(examples, size):
    found = group_size(examples, size)
    assert examples % found == 0
    assert size / 2 <= found <= size or found == examples


@pytest.mark.parametrize(("examples", "expected"), [(64, 16), (24, 12), (34, 34), (8, 8), (13, 13)])
def test_the_size_of_a_group(examples, expected):
    assert group_size(examples, 16) == expected


def logits(images):
    flat = images.reshape(len(images), -1)
    weights = jax.random.normal(jax.random.key(5), (flat.shape[1], 3))
    return jnp.sin(3 * flat @ weights)


@pytest.mark.parametrize(
    "attack", [PGD(0.1, 0.02, 3), PGD(0.5, 0.1, 3, norm="l2"), APGD(0.1, steps=5)]
)
@pytest.mark.parametrize("own_keys", [True, False])
def test_the_points_are_those_of_the_whole_batch(attack, own_keys):
    images = jax.random.uniform(jax.random.key(0), (EXAMPLES, 4, 4, 1))
    labels = jnp.arange(EXAMPLES) % 3
    key = jax.random.key(1)
    if own_keys:
        key = jax.random.split(key, EXAMPLES)
    grouped = InGroups(attack, 8)
    assert (grouped.epsilon, grouped.norm) == (attack.epsilon, attack.norm)
    found = jax.jit(lambda x: grouped(logits, x, labels, key))(images)
    expected = jax.jit(lambda x: attack(logits, x, labels, key))(images)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_network_sees_one_group_at_a_time():
    seen = set()

    def watched(images):
        seen.add(len(images))
        return logits(images)

    key = jax.random.split(jax.random.key(1), EXAMPLES)
    images = jnp.full((EXAMPLES, 4, 4, 1), 0.5)
    InGroups(PGD(0.1, 0.02, 2), 8)(watched, images, jnp.arange(EXAMPLES) % 3, key)
    assert seen == {8}
