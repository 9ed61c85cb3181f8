"""Masks that regrow while weights train: when, by how much, and the same on all devices."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import runs
from numpy.testing import assert_array_equal

from harp_jax import models, parallel
from harp_jax.methods import METHODS, Setting, Timing
from harp_jax.methods.flying_bird import FlyingBird, random_like
from harp_jax.methods.flying_bird_plus import FlyingBirdPlus
from harp_jax.pruning import schemes
from harp_jax.pruning.layers import leaves_by_path, rates_of, tree_of_leaves
from harp_jax.pruning.masks import weight_mask
from harp_jax.run import recipe
from harp_jax.training import state

BATCHES, EPOCHS, BATCH = 3, 4, 64
REGROWN = {BATCHES + 1, 2 * BATCHES + 1}  # with the first batches of epochs 1 and 2, of 0 to 3


@functools.cache
def scheme():
    return schemes.scheme(models.create("tiny", 10), (8, 8, 1), "weight")


def setting(**others):
    fields = {"epochs": 20, "updates_per_epoch": 10, "seed": 0, "target": 0.2}
    fields |= {"minimum": networks.MINIMUM, "scheme": scheme()}
    return Setting(**(fields | others))


def masks(variables):
    rates, scores = rates_of(variables), leaves_by_path(variables["scores"])
    return {
        path: np.asarray(weight_mask(jnp.asarray(scores[path]), rate))
        for path, rate in rates.items()
    }


@pytest.mark.parametrize(("per_batch", "every"), [(1, 1), (1, 3), (4, 2)])
def test_epochs_that_are_due_begin_with_a_regrowth(per_batch, every):
    epochs, batches = 12, 5
    timing = Timing(epochs, batches * per_batch, per_batch, every)
    assert timing.due() == [epoch for epoch in range(1, 9) if epoch % every == 0]
    first = {epoch * batches for epoch in timing.due()}
    for batch in range(epochs * batches):
        assert bool(timing.now(jnp.int32(per_batch * (batch + 1)))) == (batch in first)


def test_a_stage_too_short_for_a_regrowth_has_none():
    for timing in (Timing(1, 10), Timing(4, 10, every=3)):
        assert timing.due() == []
        assert not any(timing.now(jnp.int32(updates)) for updates in range(1, 41))


def test_the_share_falls_along_a_cosine():
    bird = FlyingBird(drop=0.4)
    shares = [float(bird.share(updates, setting())) for updates in (0, 100, 200)]
    assert shares == pytest.approx([0.4, (0.4 + 0.005) / 2, 0.005])
    assert float(FlyingBird(drop=0.001).share(50, setting())) == pytest.approx(0.001)


def test_random_growth_has_a_key_for_each_layer_and_regrowth():
    tree = networks.tiny()["params"]
    one, same, other = (random_like(tree, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(assert_array_equal, one, same)
    leaves = [
        np.asarray(leaf).ravel()[:8] for tree in (one, other) for leaf in jax.tree.leaves(tree)
    ]
    assert len({tuple(leaf) for leaf in leaves}) == len(leaves)


class Steps:
    """A stage's steps on random images, and the masks after each."""

    def __init__(self, devices, stage="prune", **fields):
        config = runs.digits(
            **{"prune.epochs": EPOCHS, "finetune.epochs": EPOCHS, **({"loss": "natural"} | fields)}
        )
        model = models.create("tiny", 10, axis_name=parallel.AXIS)
        variables = networks.tiny("weight")
        self.stage = recipe.make_stage(config, stage, scheme(), BATCHES, variables)
        self.devices = parallel.local_devices(devices)
        self.step = parallel.parallel(recipe.make_step(self.stage, model), self.devices)
        self.state = state.create(self.stage, variables, (8, 8, 1))

    def run(self, count=BATCHES * EPOCHS):
        """Takes steps; gives the masks before and after each."""
        random, devices = np.random.default_rng(0), len(self.devices)
        replicated, found = (
            parallel.replicate(self.state, self.devices),
            [masks(self.state.variables)],
        )
        for _ in range(count):
            images = random.integers(0, 256, (BATCH, 8, 8, 1), dtype=np.uint8)
            labels = random.integers(0, 10, BATCH, dtype=np.int32)
            batch = {"images": images, "labels": labels, "index": np.arange(BATCH, dtype=np.int32)}
            replicated = self.step(
                replicated,
                jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:]), batch),
            )
            found.append(masks(parallel.to_host(replicated).variables))
        self.replicated = replicated
        return found


BIRD = {"prune.method": "flying_bird"}
RUNS = [
    pytest.param("prune", BIRD, id="gradient", marks=pytest.mark.slow),
    pytest.param(
        "prune", {**BIRD, "flying_bird.growth": "random"}, id="random", marks=pytest.mark.slow
    ),
    pytest.param(
        "prune", {**BIRD, "loss": "free", "free.replays": 2}, id="free", marks=pytest.mark.slow
    ),
    pytest.param("finetune", {"finetune.regrow": 0.2}, id="finetune"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "fields"), RUNS)
def test_devices_regrow_the_same_weights_and_keep_as_many(stage, fields):
    steps = Steps(2, stage, **fields)
    found = steps.run()
    changed = {
        step
        for step in range(1, len(found))
        if any((found[step][path] != found[step - 1][path]).any() for path in found[0])
    }
    assert changed == REGROWN
    for each in found:
        assert {path: mask.sum() for path, mask in each.items()} == {
            path: mask.sum() for path, mask in found[0].items()
        }
    for leaf in jax.tree.leaves(steps.replicated.variables):
        one, other = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert_array_equal(one, other)


@pytest.mark.slow
def test_random_growth_depends_on_the_seed_alone():
    fields = {**BIRD, "flying_bird.growth": "random"}
    one, same, other = (Steps(1, seed=seed, **fields).run(BATCHES + 1)[-1] for seed in (0, 0, 1))
    jax.tree.map(assert_array_equal, one, same)
    assert any((one[path] != other[path]).any() for path in one)


def test_masks_stay_in_finetuning_by_default():
    assert Steps(1, "finetune").stage.masking.regrow is None


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([(0.5, 0.5)], (False, False)),
        ([(0.5, 0.5), (0.6, 0.6)], (False, False)),
        ([(0.5, 0.5), (0.7, 0.6)], (True, False)),  # the gap grows
        ([(0.5, 0.5), (0.5, 0.5)], (False, True)),  # validation stands still
        ([(0.5, 0.5), (0.6, 0.4)], (True, True)),
        # Of the last four changes two widen the gap, one is for the worse.
        ([(0.1, 0.9), (0.1, 0.1), (0.3, 0.2), (0.4, 0.3), (0.5, 0.2), (0.5, 0.4)], (True, False)),
    ],
)
def test_flying_bird_plus_looks_at_the_last_epochs(accuracies, expected):
    assert FlyingBirdPlus().verdict(accuracies) == expected


def counts(variables):
    return {path: int(mask.sum()) for path, mask in masks(variables).items()}


@pytest.mark.parametrize(
    ("accuracies", "more"),
    [((0.1, 0.0), 0.0), ((0.2, 0.0), -0.4), ((0.0, -0.1), 0.05), ((0.1, -0.1), -0.35)],
)
def test_flying_bird_plus_changes_the_number_and_returns_to_the_budget(accuracies, more):
    """Training accuracy rises by the first number an epoch and validation by 0.1 + the second."""
    bird, told = FlyingBirdPlus(drop=0.5, every=2), setting()
    due = bird.timing(told).due()
    assert due == [2, 4, 6, 8, 10, 12, 14]
    assert bird.chosen_from(told) == 14
    variables = networks.tiny("weight")
    change = bird.after_epoch(told, variables)
    first, rise = counts(variables), np.add(accuracies, (0, 0.1))
    history = [tuple(epoch * rise) for epoch in range(20)]
    for epoch in (3, 8, 11):  # no regrowth follows; before half of the stage; not due
        assert change(variables, history[:epoch]) is variables
    small = change(variables, history[:10])
    share = float(bird.share(100, told))
    found = counts(small if more else variables)
    for path, count in first.items():
        assert found[path] == count + round(share * more * count)
    back = change(small, history[:14])
    assert counts(back) == first
    jax.tree.map(assert_array_equal, back["rates"], variables["rates"])


def test_dense_layers_do_not_change_their_number():
    bird, told = FlyingBirdPlus(), setting()
    variables = networks.tiny("weight")
    rates = leaves_by_path(variables["rates"])
    dense = ("conv1", "kernel")
    variables = {**variables, "rates": tree_of_leaves(rates | {dense: jnp.float32(100.0)})}
    history = [(0.1 * epoch, -0.1 * epoch) for epoch in range(20)]
    found = counts(bird.after_epoch(told, variables)(variables, history[:11]))
    first = counts(variables)
    assert [path for path in first if found[path] == first[path]] == [dense]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("flying_bird", {"drop": 0.0}, r"drop=0.0: allowed are numbers in \(0, 1\]"),
        ("flying_bird", {"every": 0}, "every=0: allowed are whole numbers >= 1"),
        ("flying_bird", {"growth": "gradients"}, "growth='gradients': did you mean 'gradient'"),
        ("flying_bird_plus", {"more_grown": 1.5}, "more_grown=1.5: allowed"),
        ("flying_bird_plus", {"window": 0}, "window=0: allowed"),
        ("flying_bird_plus", {"threshold": 0.0}, "threshold=0.0: allowed"),
        ("flying_bird_plus", {"begin": -0.5}, "begin=-0.5: allowed"),
        ("twin_rep", {"dense": 1.0}, r"dense=1.0: allowed are numbers in \[0, 1\)"),
    ],
)
def test_wrong_settings_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](**fields)
