"""Compaction of networks with random masks, biases and statistics."""

import graphs
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from harp_jax.export import compact_folding
from harp_jax.export.compact_folding import fold
from harp_jax.export.compact_graph import LAYERS
from harp_jax.export.compact_narrowing import narrow

# Bottlenecks have the same operations in the same order as the other residual network.
every_network = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "bottleneck" else ())
        for name in graphs.NETWORKS
    ],
)


@every_network
def test_the_traced_nodes_compute_the_logits(name):
    graph, images, expected = graphs.traced(name)
    np.testing.assert_allclose(graphs.logits(graph, images), expected, rtol=2e-5)


@every_network
@hypothesis.settings(max_examples=12, deadline=None, derandomize=True)
@hypothesis.given(
    density=st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5]),
    seed=st.integers(0, 2**32 - 1),
    round_to=st.sampled_from([1, 1, 2, 8]),
)
def test_logits_stay(name, density, seed, round_to):
    graph, images, _ = graphs.traced(name)
    graph = graphs.copied(graph)
    graphs.randomise(graph, density, np.random.default_rng(seed))
    expected = graphs.logits(graph, images)
    largest = np.abs(expected).max()
    widths = {node.name: node.outputs[-1] for node in graph.layers}
    weights = sum(np.count_nonzero(graph.arrays[node.name]["kernel"]) for node in graph.layers)
    fold(graph)
    rounding = 1e-6 if name == "chain" else 1e-10  # constants of its functions are float32
    np.testing.assert_allclose(
        graphs.logits(graph, images), expected, rtol=0, atol=rounding * largest
    )
    nodes, arrays = narrow(graph, round_to)
    np.testing.assert_allclose(
        graphs.evaluate(nodes, arrays, images), expected, rtol=0, atol=1e-5 * largest
    )
    left = [node for node in nodes if node.op in LAYERS]
    assert all(node.outputs[-1] <= widths[node.name] for node in left)
    assert sum(np.count_nonzero(arrays[node.name]["kernel"]) for node in left) <= weights
    again = graphs.copied(graph)
    fold(again)
    assert compact_folding._size(again) == compact_folding._size(graph)


@every_network
def test_a_network_at_99_percent_is_much_smaller(name):
    graph = graphs.copied(graphs.traced(name)[0])
    numbers = np.random.default_rng(1)
    before = 0
    for node in graph.layers:
        kernel = graph.arrays[node.name]["kernel"]
        before += kernel.size
        kernel *= numbers.random(kernel.shape) < max(0.01, 2.5 / kernel.size)
    _, arrays = graphs.compacted(graph)
    after = sum(array.size for own in arrays.values() for array in own.values())
    assert after < before / 3
