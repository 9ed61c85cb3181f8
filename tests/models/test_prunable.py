"""Networks made prunable: their first variables, and the masks that they apply."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import networks
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from harp_jax import models
from harp_jax.pruning import sparsity
from harp_jax.pruning.layers import bake, rates_of
from harp_jax.pruning.scores import GRANULARITIES, initial_scores

IMAGES = jnp.asarray(np.random.default_rng(0).random((4, 8, 8, 1)), jnp.float32)


class Own(nn.Module):
    """A user's network."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(images)).reshape(len(images), -1)
        return nn.Dense(self.num_classes, name="classes")(x)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", ["tiny", "test_prunable:Own"])
def test_first_variables_are_the_dense_ones_with_scores_and_rates(name, granularity):
    prunable, dense = (models.create(name, 10, chosen) for chosen in (granularity, None))
    variables, plain = (jax.jit(m.init)(jax.random.key(0), IMAGES) for m in (prunable, dense))
    assert set(variables) - set(plain) == {"scores", "rates", "minimum_rates"}
    same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)  # two programs
    jax.tree.map(same, {key: variables[key] for key in plain}, dict(plain))
    kernel, scores = (
        variables[key]["classes" if "Own" in name else "dense2"]["kernel"]
        for key in ("params", "scores")
    )
    same(scores, initial_scores(kernel, granularity))
    kept = [row.kept / row.parameters for row in sparsity.layer_sparsity(variables)]
    assert min(kept) > 0.98
    assert min(rates_of(variables).values()) > 0.98


@pytest.mark.parametrize(
    "chosen", [None, "weight", pytest.param("channel", marks=pytest.mark.slow)]
)
def test_networks_apply_the_masks_of_the_variables_that_they_are_given(chosen):
    model = models.create("tiny", 10, chosen)
    logits = jax.jit(lambda variables: model.apply(variables, IMAGES, train=False))
    dense = logits(networks.tiny())
    for granularity in GRANULARITIES:
        masked = logits(networks.tiny(granularity))
        assert_array_equal(masked, logits(jax.jit(bake)(networks.tiny(granularity))))
        assert np.abs(masked - dense).max() > 1e-3


def test_a_users_prunable_network_applies_its_masks():
    model = models.create("test_prunable:Own", 10, "weight")
    variables = jax.jit(model.init)(jax.random.key(0), IMAGES)
    variables["rates"] = jax.tree.map(lambda logit: 0 * logit, variables["rates"])  # half of them
    plain = jax.jit(Own(10).apply)
    masked = jax.jit(model.apply)(variables, IMAGES)
    expected = plain({"params": jax.jit(bake)(variables)["params"]}, IMAGES)
    assert_array_equal(masked, expected)
    logits = jax.jit(lambda tree: models.logits_fn(Own(10), tree)(IMAGES))
    assert_array_equal(logits(variables), expected)
    assert np.abs(masked - plain({"params": variables["params"]}, IMAGES)).max() > 1e-3


def test_statistics_of_a_prunable_network_change_in_training():
    model = models.create("tiny", 10, "channel")
    variables = networks.tiny("channel")
    train = jax.jit(lambda tree: model.apply(tree, IMAGES, train=True, mutable=["batch_stats"]))
    _, changed = train(variables)
    assert set(changed) == {"batch_stats"}
    before, after = (tree["batch_stats"]["norm1"]["mean"] for tree in (variables, changed))
    assert np.abs(after - before).max() > 0


def test_an_unknown_granularity_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # it would refuse it first
    with pytest.raises(ValueError, match="granularity='filter': allowed are None, weight, channel"):
        models.create("tiny", 10, "filter")  # pyright: ignore[reportArgumentType]
