"""The Square Attack: its windows, its schedule, and that cutting a search changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from harp_jax import models
from harp_jax.attacks import base, square
from harp_jax.attacks.square import Square
from harp_jax.evaluation.programs import choose

KEYS = jax.random.split(jax.random.key(2), 32)
ATTACKS = {
    "linf": Square(0.1, queries=60),
    "l2": Square(0.8, "l2", queries=60),
}
each_norm = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())


@functools.cache
def network():
    return jax.jit(models.logits_fn(models.create("tiny", 10), networks.tiny()))


@pytest.fixture(scope="module")
def setting():
    images = jax.random.uniform(jax.random.key(1), (32, 8, 8, 1))
    labels = network()(images).argmax(-1)
    return network(), images, labels.at[0].set((labels[0] + 1) % 10)  # one is wrong at the start


@functools.partial(jax.jit, static_argnums=0)
def started(attack, batch):
    return attack.start(base.Task(network(), *batch, KEYS, 0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def advanced(attack, queries, state, batch):
    """The state after up to so many queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(square, "QUERIES", queries)
        return attack.advance(base.Task(network(), *batch, KEYS, 0), state)


def test_the_schedule_is_the_published_one():
    # round(sqrt(0.8 / 2**k * 1024)) for k = 0 ... 9
    sides = (29, 20, 14, 10, 7, 5, 4, 3, 2, 1)
    assert square._window_sizes(0.8, "linf", (32, 32)) == sides
    assert square._window_sizes(0.8, "l2", (32, 32)) == (29, 21, 15, 11, 7, 5, 5, 3, 3, 3)
    assert square._window_sizes(0.8, "linf", (2, 50))[0] == 2  # no larger than the image


def test_the_pattern_of_an_l2_window():
    bumps = square._bumps(5)
    assert np.linalg.norm(bumps) == pytest.approx(1.0)
    assert (bumps[:2] > 0).all()
    assert (bumps[2:] < 0).all()
    # Three rows, five columns: 1 in the middle, then rings that cover 1/4 and 1/9 less.
    ring = np.array([1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1])
    lower = -bumps[3] / -bumps[3, 2] * ring[2]
    np.testing.assert_allclose(lower, [ring[0], ring[1], ring[2], ring[1], ring[0]], rtol=1e-5)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(attack, id=name, marks=pytest.mark.slow if name == "l2" else ())
        for name, attack in ATTACKS.items()
    ],
)
def test_a_search_in_pieces_finds_the_same(attack, setting):
    network, *batch = setting
    fresh = started(attack, batch)
    whole = advanced(attack, 100, fresh, batch)
    first = advanced(attack, 1, fresh, batch)
    state = advanced(attack, 100, advanced(attack, 20, first, batch), batch)
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    query = np.asarray(state.memory["query"])
    assert state.done.all()
    assert query.max() == attack.queries
    fooled = network(state.adversarial).argmax(-1) != batch[1]
    assert (query[~fooled] == attack.queries).all()
    assert not first.done.all()


@each_norm
def test_examples_at_different_queries_share_a_batch(attack, setting):
    _, *batch = setting
    fresh = started(attack, batch)
    later = advanced(attack, 20, fresh, batch)
    even = np.arange(32) % 2 == 0
    mixed = advanced(attack, 100, choose(jnp.asarray(even), later, fresh), batch)
    whole = advanced(attack, 100, fresh, batch)
    jax.tree.map(np.testing.assert_array_equal, mixed, whole)


def test_every_restart_is_a_round_with_noise_of_its_own(setting):
    network, *batch = setting
    attack = Square(0.1, queries=5, restarts=2)
    assert attack.rounds(10) == 2
    starts = [
        attack.start(base.Task(network, *batch, KEYS, number)).adversarial for number in range(2)
    ]
    assert not np.array_equal(*starts)


@each_norm
def test_lowers_margins_within_the_ball(attack, setting):
    network, images, labels = setting
    found = jax.jit(functools.partial(attack, network))(images, labels, KEYS)
    np.testing.assert_array_equal(found[0], images[0])  # misclassified as it was
    change = np.asarray(found - images).reshape(32, -1)
    size = np.linalg.norm(change, np.inf if attack.norm == "linf" else 2, axis=1)
    assert size.max() <= attack.epsilon + 1e-6
    assert size[1:].min() > 0.1 * attack.epsilon
    margin = [square._margin(network, x, labels)[0][1:] for x in (images, found)]
    assert (margin[1] > margin[0]).mean() > 0.95


def test_windows_move_only_what_they_cover():
    # A network that never changes its mind keeps the start; the last pixel alone is seen by it.
    weights = jnp.zeros((64, 2)).at[-1].set(jnp.array([-1.0, 1.0]))
    network = lambda x: x.reshape(len(x), -1) @ weights + jnp.array([[10.0, 0.0]])  # noqa: E731
    images, labels = jnp.full((4, 8, 8, 1), 0.5), jnp.zeros(4, jnp.int32)
    found = Square(0.1, queries=40)(network, images, labels, jax.random.key(0))
    # The last column's stripe goes one way or the other; a window that reaches it raises it.
    np.testing.assert_allclose(found[:, -1, -1, 0], 0.6)
    assert set(np.round(np.asarray(found), 5).flatten()) == {np.float32(0.4), np.float32(0.6)}


def test_restarts_are_at_least_as_strong_as_one(setting):
    network, images, labels = setting
    few = Square(0.05, queries=5)
    margins = [
        square._margin(network, attack(network, images, labels, KEYS), labels)
        for attack in (few, dataclasses.replace(few, restarts=4))
    ]
    assert (margins[1][0] >= margins[0][0]).all()
    assert margins[1][1].sum() >= margins[0][1].sum()


@pytest.mark.parametrize(("shape", "classes"), [((3, 7, 3), 3), ((1, 1, 1), 2)])
@each_norm
def test_takes_any_shape_and_few_classes(attack, shape, classes):
    images = jax.random.uniform(jax.random.key(1), (5, *shape))
    weights = jax.random.normal(jax.random.key(2), (images[0].size, classes))
    network = lambda x: x.reshape(len(x), -1) @ weights  # noqa: E731
    labels = network(images).argmax(-1)
    found = jax.jit(functools.partial(attack, network))(images, labels, KEYS[:5])
    assert np.isfinite(found).all()
    margins = [square._margin(network, x, labels)[0] for x in (images, found)]
    assert (margins[1] >= margins[0]).all()
