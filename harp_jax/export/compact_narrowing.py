"""Takes the units that are not needed out of a network's arrays."""

from typing import Any

import numpy as np

from harp_jax.export.compact_folding import Needs, needs
from harp_jax.export.compact_graph import LAYERS, Graph, Node


def narrow(graph: Graph, round_to: int) -> tuple[tuple[Node, ...], dict[str, Any]]:
    """Takes out the units that are not needed.

    Units that are computed side by side stay or go together: the inputs and outputs of additions
    and of functions entry by entry, and all features of a channel. Images and logits keep theirs,
    and every value at least one.

    Args:
        graph: A network after `compact_folding.fold`.
        round_to: Widths are rounded up to multiples of this number, but not above what they were.

    Returns:
        The nodes, up to the logits, and the float32 arrays by node.
    """
    kept = _kept(graph, round_to)
    nodes, params = [], {}
    for name, node in graph.nodes.items():
        arrays = _sliced(graph, node, kept)
        outputs = (*node.outputs[:-1], int(kept[name].sum()))
        nodes.append(node._replace(outputs=outputs, bias=node.op in LAYERS and "bias" in arrays))
        if arrays:
            params[name] = arrays
    return tuple(nodes), params


def _sliced(graph: Graph, node: Node, kept: Needs) -> dict[str, np.ndarray]:
    """Returns the kept entries of a node's arrays; a layer's bias only if it is not all zero."""
    arrays = {}
    for key, array in graph.arrays.get(node.name, {}).items():
        taken = array[..., kept[node.name]]
        if key == "kernel":
            taken = taken[..., kept[node.inputs[0]], :]
        arrays[key] = np.ascontiguousarray(taken, np.float32)
    if node.op in LAYERS and not arrays["bias"].any():
        del arrays["bias"]
    return arrays


def _kept(graph: Graph, round_to: int) -> Needs:
    """Finds the units that stay, by node."""
    kept = needs(graph)
    for name, node in graph.nodes.items():
        if node.op == "images":
            kept[name][:] = True
        elif not kept[name].any():
            kept[name][0] = True
    _align(graph, kept)
    for node in graph.layers:
        units = kept[node.name]
        width = -(-units.sum() // round_to) * round_to
        units[np.flatnonzero(~units)[: width - units.sum()]] = True
        _align(graph, kept)
    return kept


def _align(graph: Graph, kept: Needs) -> None:
    """Adds the units that stay because others do, in place."""
    before = -1
    while (now := sum(int(units.sum()) for units in kept.values())) != before:
        before = now
        for name, node in graph.nodes.items():
            if node.op == "flatten":
                (channels,) = (kept[source] for source in node.inputs)
                channels |= kept[name].reshape(-1, channels.size).any(0)
                kept[name] |= np.tile(channels, kept[name].size // channels.size)
            elif node.op not in LAYERS:
                together = np.any([kept[name], *(kept[source] for source in node.inputs)], axis=0)
                for member in (name, *node.inputs):
                    kept[member][:] = together
