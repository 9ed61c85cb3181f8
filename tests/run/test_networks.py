"""Which form of a network computes, and how many images a device attacks at once."""

import jax.numpy as jnp
import pytest

from harp_jax import models, native
from harp_jax.attacks.groups import pays_in_groups
from harp_jax.models.sparse import SparseNetwork
from harp_jax.run.networks import GROUP, SPARSE_GROUP, Networks


@pytest.mark.parametrize(("weights", "expected"), [(1000, True), (1001, False)])
def test_small_networks_are_attacked_in_groups(weights, expected):
    params = {"dense": {"kernel": jnp.zeros((1000, weights)), "bias": jnp.zeros(weights)}}
    assert pays_in_groups(params) is expected


def test_a_group_depends_on_the_form():
    model = models.create("tiny", 10)
    dense, sparse = model, SparseNetwork(model, {})
    grouped = Networks(model, sparse=True, grouped=True, measure=lambda form, group: None)
    assert [grouped.group(form) for form in (dense, sparse)] == [GROUP, SPARSE_GROUP]
    whole = Networks(model, sparse=True, grouped=False, measure=lambda form, group: None)
    assert [whole.group(form) for form in (dense, sparse)] == [None, None]
    assert grouped.ensemble_batch(sparse, 512, devices=2) == 4 * SPARSE_GROUP
    assert grouped.ensemble_batch(sparse, 32, devices=2) == 32
    assert whole.ensemble_batch(sparse, 512, devices=2) == 512


def test_the_maker_of_this_processor_is_one_word():
    assert len(native.processor_maker().split()) <= 1
