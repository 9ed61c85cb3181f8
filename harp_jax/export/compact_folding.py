"""The rules that make a network smaller without changing its logits.

A *unit* is a channel or a feature, an entry along the last axis of a node's value. It is *constant*
if it is the same number for all images and at all pixels, and *needed* if a weight that matters
reads it.
"""

import numpy as np

from harp_jax.export.compact_graph import LAYERS, WITH_KERNEL, Function, Graph, Node

Needs = dict[str, np.ndarray]  # a bool for every unit, by node


def fold(graph: Graph) -> None:
    """Applies all rules, in place, until none of them finds anything.

    Afterwards no layer reads a constant unit, but for at most one where zeros are padded, and all
    weights that write units that are not needed are zero. Shapes stay: `narrow` takes them out.
    """
    before = None
    while (now := _size(graph)) != before:
        before = now
        needed = needs(graph)
        _silence(graph, needed)
        _fold_constants(graph, needed)
        _merge_affines(graph, needs(graph))
        _drop_unread_nodes(graph)


def _size(graph: Graph) -> tuple[int, int, int]:
    """Counts nodes, weights that are not zero, and other numbers that are not zero."""
    weights, others = 0, 0
    for arrays in graph.arrays.values():
        for name, array in arrays.items():
            if name == "kernel":
                weights += int(np.count_nonzero(array))
            else:
                others += int(np.count_nonzero(array))
    return len(graph.nodes), weights, others


def needs(graph: Graph) -> Needs:
    """Finds the units that the logits depend on; all logits are."""
    needed = {name: np.zeros(node.units, bool) for name, node in graph.nodes.items()}
    needed[graph.output][:] = True
    for name, node in reversed(graph.nodes.items()):
        for place, source in enumerate(node.inputs):
            read = needed[name]
            if node.op == "concat":
                start = sum(graph.nodes[each].units for each in node.inputs[:place])
                read = read[start : start + needed[source].size]
            needed[source] |= _read(graph, node, read, needed[source].size)
    return needed


def _read(graph: Graph, node: Node, needed: np.ndarray, units: int) -> np.ndarray:
    """Finds the units of its input that a node reads for its needed units."""
    if node.op in LAYERS:
        return np.any(by_tap(graph, node)[:, :, needed] != 0, (0, 2))
    if node.op == "affine":
        return needed & (graph.arrays[node.name]["scale"] != 0)
    if node.op == "depthwise":
        return needed & np.any(by_tap(graph, node)[:, 0] != 0, 0)
    if node.op == "grouped":
        taps = by_tap(graph, node).reshape(
            -1, units // node.groups, node.groups, node.units // node.groups
        )
        by_group = needed.reshape(1, 1, node.groups, -1)
        return np.any((taps != 0) & by_group, (0, 3)).T.ravel()
    if node.op == "step":
        return np.full(units, needed.any())
    return np.any(needed.reshape(-1, units), 0)


def by_tap(graph: Graph, node: Node) -> np.ndarray:
    """Returns a view `[height * width, in, out]` of a layer's kernel."""
    kernel = graph.arrays[node.name]["kernel"]
    return kernel.reshape(-1, *kernel.shape[-2:])


def _silence(graph: Graph, needed: Needs) -> None:
    """Sets to zero what writes units that are not needed."""
    for node in filter(lambda node: node.op in WITH_KERNEL, graph.nodes.values()):
        for array in graph.arrays[node.name].values():
            array[..., ~needed[node.name]] = 0


def _fold_constants(graph: Graph, needed: Needs) -> None:
    """Moves what constant units carry into the biases of the layers that read them."""
    known: Needs = {}
    values: dict[str, np.ndarray] = {}
    for name, node in list(graph.nodes.items()):
        if node.op == "images":
            known[name], values[name] = np.zeros(node.units, bool), np.zeros(node.units)
            continue
        if node.op == "depthwise":
            (source,) = node.inputs
            _fold_depthwise(graph, node, known[source], values[source])
        if node.op in LAYERS:
            (source,) = node.inputs
            _fold_into(graph, node, known[source], values[source], needed[source])
        if node.op == "add":
            node = graph.nodes[name] = _without_constant_input(graph, node, known, values, needed)
        inputs = [(known[source], values[source]) for source in node.inputs]
        known[name], results = _constants(graph, node, inputs)
        values[name] = np.where(known[name], results, np.zeros_like(results))


def _constants(
    graph: Graph, node: Node, inputs: list[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the constant units of a node and their values, from those of its inputs."""
    known, values = inputs[0]
    if node.op in WITH_KERNEL:
        return ~(by_tap(graph, node) != 0).any((0, 1)), graph.arrays[node.name]["bias"]
    if node.op == "affine":
        scale, bias = graph.arrays[node.name]["scale"], graph.arrays[node.name]["bias"]
        return known | (scale == 0), values * scale + bias
    if node.op == "relu":
        return known, np.maximum(values, 0)
    if node.op == "avg_pool" and np.any(node.padding):
        return known & (values == 0), values
    if node.op == "flatten":
        repeats = node.outputs[-1] // known.size
        return np.tile(known, repeats), np.tile(values, repeats)
    if node.op == "add":
        return known & inputs[1][0], values + inputs[1][1]
    if node.op == "step":
        return np.zeros(node.units, bool), np.zeros(node.units)
    if node.op == "concat":
        return (
            np.concatenate([flags for flags, _ in inputs]),
            np.concatenate([array for _, array in inputs]),
        )
    if node.op == "elementwise":
        assert isinstance(node.function, Function)
        results = node.function(*(_single(array) for _, array in inputs))
        return np.all([flags for flags, _ in inputs], axis=0), _double(results)
    return known, values  # max_pool and mean


def _single(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _double(array: object) -> np.ndarray:
    result = np.asarray(array)
    return result.astype(np.float64) if result.dtype == np.float32 else result


def _fold_into(
    graph: Graph, node: Node, known: np.ndarray, values: np.ndarray, needed: np.ndarray
) -> None:
    """Takes the constant units out of a layer's kernel.

    A tap of the kernel that never meets padding sees the constant everywhere: its weight goes into
    the bias. Any other tap sees zeros at the border, which a bias cannot express. There one
    constant unit, the carrier, takes over the weights of all, each multiplied by the ratio of the
    two constants. It is zero in the same places as they, so this is exact.
    """
    kernel, bias = by_tap(graph, node), graph.arrays[node.name]["bias"]
    kernel[:, known & (values == 0)] = 0
    known = known & (values != 0)
    safe = _taps_without_padding(graph, node)
    bias += values[known] @ kernel[safe][:, known].sum(0)
    kernel[np.ix_(safe, known)] = 0
    carried = known & (kernel != 0).any((0, 2))
    if carried.any():
        carrier = np.argmax(np.abs(values) * (known & needed))
        carried[carrier] = False
        shares = values[carried] / values[carrier]
        kernel[:, carrier] += np.einsum("tio,i->to", kernel[:, carried], shares)
        kernel[:, carried] = 0


def _fold_depthwise(graph: Graph, node: Node, known: np.ndarray, values: np.ndarray) -> None:
    """Takes the constant units out of a depthwise convolution's kernel, where zeros do no harm."""
    kernel, bias = by_tap(graph, node), graph.arrays[node.name]["bias"]
    safe = known & ((values == 0) | _taps_without_padding(graph, node).all())
    bias[safe] += values[safe] * kernel[:, 0, safe].sum(0)
    kernel[..., safe] = 0


def _taps_without_padding(graph: Graph, node: Node) -> np.ndarray:
    """Returns a bool for every tap of a kernel: whether it never meets padding."""
    if node.op == "dense":
        return np.ones(1, bool)
    inside = []
    for axis, size in enumerate(graph.nodes[node.inputs[0]].outputs[:2]):
        dilation = node.dilation[axis] if node.dilation else 1
        first = np.arange(node.window[axis]) * dilation - node.padding[axis][0]
        last = first + (node.outputs[axis] - 1) * node.strides[axis]
        inside.append((first >= 0) & (last < size))
    return np.outer(*inside).ravel()


def _without_constant_input(
    graph: Graph,
    node: Node,
    known: Needs,
    values: dict[str, np.ndarray],
    needed: Needs,
) -> Node:
    """Replaces an addition by an affine node if one input is constant in all needed units."""
    wanted = needed[node.name]
    for constant, rest in (node.inputs, node.inputs[::-1]):
        if (known[constant] | ~wanted).all():
            bias = np.where(known[constant] & wanted, values[constant], 0)
            graph.arrays[node.name] = {"scale": np.ones(bias.size), "bias": bias}
            return node._replace(op="affine", inputs=(rest,))
    return node


def _merge_affines(graph: Graph, needed: Needs) -> None:
    """Merges affine nodes with the layers and affine nodes beside them, where that is exact."""
    for node in [node for node in graph.nodes.values() if node.op == "affine"]:
        (name,) = graph.nodes[node.name].inputs
        source, readers = graph.nodes[name], graph.readers(node.name)
        scale, bias = (graph.arrays[node.name][key] for key in ("scale", "bias"))
        unneeded = ~needed[node.name]
        alone = len(graph.readers(name)) == 1 and graph.output != name
        if alone and source.op in (*WITH_KERNEL, "affine"):
            for array in graph.arrays[name].values():
                array *= scale
            graph.arrays[name]["bias"] += bias
        elif np.all(unneeded | ((np.float32(scale) == 1) & (np.float32(bias) == 0))):
            pass
        elif _can_merge_forward(graph, node, readers, bias[~unneeded]):
            for reader in readers:
                kernel = by_tap(graph, reader)
                graph.arrays[reader.name]["bias"] += bias @ kernel.sum(0)
                kernel *= scale[:, None]
        else:
            continue
        graph.bypass(graph.nodes[node.name])


def _can_merge_forward(graph: Graph, node: Node, readers: list[Node], bias: np.ndarray) -> bool:
    """Returns whether all that reads an affine node are layers in which it can be merged."""
    if node.name == graph.output or any(reader.op not in LAYERS for reader in readers):
        return False
    return not bias.any() or not any(np.any(reader.padding) for reader in readers)


def _drop_unread_nodes(graph: Graph) -> None:
    """Removes the nodes on which the logits do not depend."""
    for name, node in reversed(list(graph.nodes.items())):
        if node.op != "images" and name != graph.output and not graph.readers(name):
            del graph.nodes[name]
            graph.arrays.pop(name, None)
