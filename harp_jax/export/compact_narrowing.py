"""Takes the units that are not needed out of a network's arrays."""

from typing import Any

import numpy as np

from harp_jax.export.compact_folding import Needs, needs
from harp_jax.export.compact_graph import LAYERS, WITH_KERNEL, Graph, Node


def narrow(graph: Graph, round_to: int) -> tuple[tuple[Node, ...], dict[str, Any]]:
    """Takes out the units that are not needed.

    Units that are computed side by side stay or go together: the inputs and outputs of additions,
    of functions entry by entry and of depthwise convolutions, and all features of a channel. Images
    and logits keep theirs, and so do what other grouped convolutions and steps of no known kind
    read and write; every value keeps at least one.

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
        units = int(kept[name].sum())
        outputs = (*node.outputs[:-1], units) if node.outputs else ()
        groups = units if node.op == "depthwise" else node.groups
        bias = node.op in WITH_KERNEL and "bias" in arrays
        nodes.append(node._replace(outputs=outputs, groups=groups, bias=bias))
        if arrays:
            params[name] = arrays
    return tuple(nodes), params


def _sliced(graph: Graph, node: Node, kept: Needs) -> dict[str, np.ndarray]:
    """Returns the kept entries of a node's arrays; a layer's bias only if it is not all zero."""
    arrays = {}
    for key, array in graph.arrays.get(node.name, {}).items():
        if node.op == "step":
            arrays[key] = np.asarray(array, np.float32)
            continue
        taken = array[..., kept[node.name]]
        if key == "kernel" and node.op in LAYERS:
            taken = taken[..., kept[node.inputs[0]], :]
        arrays[key] = np.ascontiguousarray(taken, np.float32)
    if node.op in WITH_KERNEL and not arrays["bias"].any():
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
        if node.op in ("step", "grouped"):
            for whole in (name, *node.inputs):
                kept[whole][:] = True
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
            elif node.op == "concat":
                stops = np.cumsum([kept[source].size for source in node.inputs])
                parts = np.split(kept[name], stops[:-1])  # views
                for source, part in zip(node.inputs, parts, strict=True):
                    kept[source] |= part
                for source, part in zip(node.inputs, parts, strict=True):
                    part |= kept[source]
            elif node.op not in (*LAYERS, "grouped", "step"):
                together = np.any([kept[name], *(kept[source] for source in node.inputs)], axis=0)
                for member in (name, *node.inputs):
                    kept[member][:] = together
