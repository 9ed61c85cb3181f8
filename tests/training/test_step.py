"""What the compiled training step holds: masks once, and not inside the attack."""

import re

import jax
import jax.numpy as jnp
import networks
import pytest

from harp_jax import models, parallel
from harp_jax.attacks import PGD
from harp_jax.methods import METHODS
from harp_jax.training import optim, stages
from harp_jax.training import state as train_state
from harp_jax.training.step import make_train_step

MASK_PASSES, ATTACK_STEPS = 8, 7  # a mask has two loops of passes


@pytest.fixture(scope="module")
def pruned():
    return networks.tiny("weight")


def jaxpr_loops(jaxpr, inside=()):
    """(trip count, trip counts of the loops around it) of all loops of fixed length."""
    for equation in jaxpr.eqns:
        trips = equation.params.get("length") if equation.primitive.name == "scan" else None
        if trips is not None:
            yield trips, inside
        around = inside if trips is None else (*inside, trips)
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from jaxpr_loops(inner, around)


def mapped_step(pruned, ascend=None):
    """A step over the axis of devices, and its arguments for one."""
    optimizer, attack = optim.optimizer(lambda _: 0.1, 0.9, 5e-4), PGD(0.1, 0.02, ATTACK_STEPS)
    stage = networks.stage("harp", "pgd", optimizer, 10, attack, ascend=ascend)
    step = make_train_step(stage, models.create("tiny", 10, axis_name=parallel.AXIS))
    state = train_state.create(stage, pruned)
    batch = {
        "images": jnp.zeros((4, 8, 8, 1), jnp.uint8),
        "labels": jnp.zeros(4, jnp.int32),
        "index": jnp.arange(4),
    }
    mapped = jax.vmap(step, axis_name=parallel.AXIS)
    return mapped, jax.tree.map(lambda x: jnp.asarray(x)[None], (state, batch))


def test_the_attack_runs_once_where_the_gradient_is_taken_elsewhere(pruned):
    mapped, one = mapped_step(pruned, lambda scores, gradient: scores)
    loops = list(jaxpr_loops(jax.make_jaxpr(mapped)(*one).jaxpr))
    assert [around for trips, around in loops if trips == ATTACK_STEPS] == [()]
    assert [around for trips, around in loops if trips == MASK_PASSES] == [()] * 16


def test_masks_are_computed_once_a_step_outside_the_attack(pruned):
    mapped, one = mapped_step(pruned)
    loops = list(jaxpr_loops(jax.make_jaxpr(mapped)(*one).jaxpr))
    assert [around for trips, around in loops if trips == MASK_PASSES] == [()] * 8
    assert [around for trips, around in loops if trips == ATTACK_STEPS] == [()]
    # The compiler neither drops nor copies a mask's loops (where it puts them is not looked at).
    text = jax.jit(mapped).lower(*one).compile().as_text()
    trips = re.findall(r'known_trip_count":\{"n":"(\d+)"', text)
    assert trips.count(str(MASK_PASSES)) == 8


def test_split_and_merge_are_inverse(pruned):
    for groups in [stages.WEIGHTS, *(method.trains for method in METHODS.values())]:
        trainable, frozen = stages.split(pruned, groups)
        whole = stages.merge(trainable, frozen)
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: a is b, whole, dict(pruned))))
        assert ("scores" in trainable) == ("scores" in groups)
        assert ("rates" in trainable) == ("rates" in groups)
        params = trainable.get("params", {})
        assert ("conv1" in params) == ("weights" in groups)
        assert set(params.get("norm1", ())) == ({"scale", "bias"} if "norm" in groups else set())
        assert "minimum_rates" not in trainable


def test_a_collection_without_a_group_is_refused(pruned):
    with pytest.raises(ValueError, match="unknown collection 'extra'"):
        stages.split({**pruned, "extra": {"a": {"b": jnp.zeros(1)}}}, stages.WEIGHTS)
