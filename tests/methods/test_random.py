"""Random scores: a function of the seed, and the same where layers share channels."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from harp_jax.methods.random import random_scores
from harp_jax.models.resnet import ResNet
from harp_jax.pruning import channels
from harp_jax.pruning.channels import Architecture
from harp_jax.pruning.layers import leaves_by_path, tree_of_leaves

SHARED = channels.trace(ResNet(10, stages=(1, 1), width=4), (8, 8, 1))
ALONE = Architecture(SHARED.layers)


def scores(architecture, seed):
    zeros = {layer.path: np.zeros(layer.kernel) for layer in architecture.layers}
    if architecture.groups:
        groups = architecture.prunable
        zeros = {path: np.zeros(group.size) for group in groups for path in group.readers}
    before = {"params": {}, "scores": tree_of_leaves(zeros)}
    after = random_scores(before, architecture, seed)
    assert after["params"] is before["params"]
    drawn = leaves_by_path(after["scores"])
    assert {path: leaf.shape for path, leaf in drawn.items()} == {
        path: leaf.shape for path, leaf in zeros.items()
    }
    return drawn


@pytest.mark.parametrize("architecture", [ALONE, SHARED], ids=["weight", "channel"])
def test_the_seed_decides(architecture):
    one, same, other = (scores(architecture, seed) for seed in (3, 3, 4))
    for path, leaf in one.items():
        assert_array_equal(leaf, same[path])
        assert not np.array_equal(leaf, other[path])
        assert 0 <= leaf.min() < leaf.max() < 1


def test_layers_differ():
    firsts = [tuple(np.ravel(leaf)[:3]) for leaf in scores(ALONE, 0).values()]
    assert len(set(firsts)) == len(firsts) == len(ALONE.layers)


def test_only_layers_that_share_channels_share_scores():
    drawn = scores(SHARED, 0)
    assert max(len(group.readers) for group in SHARED.prunable) > 2
    for group in SHARED.prunable:
        for path in group.readers:
            assert_array_equal(drawn[path], drawn[group.readers[0]])
    assert len({tuple(np.ravel(leaf)[:3]) for leaf in drawn.values()}) == len(SHARED.prunable)
