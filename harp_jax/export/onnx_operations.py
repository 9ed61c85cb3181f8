"""JAX's operations as ONNX's: one function for each, by the name of JAX's primitive.

Each takes the graph, the equation of the jaxpr and its inputs, which are tensors of the graph or
known NumPy arrays, at least one of them a tensor. It returns the output. Convolutions and pooling
leave their outputs with the channels first, as ONNX has them; what follows works in that order, and
only reshaping and matrix products go back to JAX's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from harp_jax.export.onnx_graph import Axes, Graph, Tensor

Operation = Callable[[Graph, Any, list[Any]], Tensor]
_END = np.iinfo(np.int64).max  # an end of a slice that is beyond every axis


class UnsupportedError(ValueError):
    """Raised for a use of an operation that has no translation; says which use."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise UnsupportedError(what)


def is_symbolic(shape: Sequence[Any]) -> bool:
    """Returns whether a shape has a dimension that depends on the batch."""
    return any(not isinstance(size, int) for size in shape)


def _common_axes(values: Sequence[Any]) -> Axes:
    """Returns the order in which elementwise operations work: that of the first moved input."""
    orders = [value.axes for value in values if isinstance(value, Tensor)]
    rank = max(map(len, orders))
    moved = [axes for axes in orders if axes != tuple(range(rank)) and len(axes) == rank]
    return moved[0] if moved else tuple(range(rank))


def _arranged(graph: Graph, values: Sequence[Any]) -> tuple[list[str], Axes]:
    axes = _common_axes(values)
    scalars = [() if not isinstance(v, Tensor) and v.ndim == 0 else axes for v in values]
    return [graph.arranged(v, each) for v, each in zip(values, scalars, strict=True)], axes


def _elementwise(*operations: str) -> Operation:
    """Makes the operation that applies ONNX's elementwise operations, one after the other."""

    def apply(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
        del equation
        names, axes = _arranged(graph, inputs)
        name = graph.node(operations[0], names)
        for operation in operations[1:]:
            name = graph.node(operation, [name])
        return Tensor(name, axes)

    return apply


def _same(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    del graph, equation
    return inputs[0]


def _sub(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    if isinstance(inputs[1], np.ndarray):  # runtimes join additions with convolutions
        return _elementwise("Add")(graph, equation, [inputs[0], -inputs[1]])
    return _elementwise("Sub")(graph, equation, inputs)


def _max(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    known = [value for value in inputs if isinstance(value, np.ndarray)]
    if known and not known[0].any():
        return _elementwise("Relu")(graph, equation, [v for v in inputs if isinstance(v, Tensor)])
    return _elementwise("Max")(graph, equation, inputs)


def _integer_pow(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    exponent = np.asarray(equation.params["y"], np.float32)
    return _elementwise("Pow")(graph, equation, [*inputs, exponent])


def _square(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    return _elementwise("Mul")(graph, equation, inputs * 2)


def _log1p(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    return _elementwise("Add", "Log")(graph, equation, [*inputs, np.asarray(1, np.float32)])


def _expm1(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    exponential = _elementwise("Exp")(graph, equation, inputs)
    return _elementwise("Add")(graph, equation, [exponential, np.asarray(-1, np.float32)])


def _clamp(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    low, value, high = inputs
    above = _elementwise("Max")(graph, equation, [low, value])
    return _elementwise("Min")(graph, equation, [above, high])


def _select(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    _require(len(inputs) == 3, "more than two cases")
    which, if_false, if_true = inputs
    boolean = equation.invars[0].aval.dtype == bool
    _require(boolean, "cases that are not chosen by a boolean")
    return _elementwise("Where")(graph, equation, [which, if_true, if_false])


def _convert(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    from onnx import helper

    wanted = np.dtype(equation.params["new_dtype"])
    if equation.invars[0].aval.dtype == wanted:
        return inputs[0]
    kind = helper.np_dtype_to_tensor_dtype(wanted)
    return Tensor(graph.node("Cast", [inputs[0].name], to=kind), inputs[0].axes)


def _convolution(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    p = equation.params
    _require(set(p["lhs_dilation"]) <= {1}, "dilated images (a transposed convolution)")
    _require(p["batch_group_count"] == 1, "groups of examples")
    _require(min(sum(p["padding"], ()), default=0) >= 0, "negative padding")
    layout = p["dimension_numbers"]
    images = graph.arranged(inputs[0], tuple(layout.lhs_spec))
    filters = graph.arranged(inputs[1], tuple(layout.rhs_spec))
    lows, highs = zip(*p["padding"], strict=True)
    name = graph.node(
        "Conv",
        [images, filters],
        kernel_shape=[equation.invars[1].aval.shape[axis] for axis in layout.rhs_spec[2:]],
        strides=list(p["window_strides"]),
        pads=[*lows, *highs],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    return Tensor(name, tuple(layout.out_spec))


def _pool(operation: str) -> Operation:
    """Makes pooling of windows that leave at least two axes alone, taken as batch and channels."""

    def apply(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
        p = equation.params
        window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
        settings = zip(window, strides, padding, strict=True)
        alone = [axis for axis, each in enumerate(settings) if each == (1, 1, (0, 0))]
        dilated = {*p["base_dilation"], *p["window_dilation"]} != {1}
        _require(len(alone) >= 2 and not dilated, f"windows {window} with dilation or no channels")
        leading = (alone[0], alone[-1])
        spatial = [axis for axis in range(len(window)) if axis not in leading]
        axes = (*leading, *spatial)
        attributes: dict[str, Any] = {
            "kernel_shape": [window[axis] for axis in spatial],
            "strides": [strides[axis] for axis in spatial],
            "pads": [padding[axis][end] for end in (0, 1) for axis in spatial],
        }
        _require(min(attributes["pads"]) >= 0, "negative padding")
        images = graph.arranged(inputs[0], axes)
        if operation == "MaxPool":
            return Tensor(graph.node("MaxPool", [images], **attributes), axes)
        mean = graph.node("AveragePool", [images], count_include_pad=1, **attributes)
        size = graph.constant(np.prod(window), np.float32)
        return Tensor(graph.node("Mul", [mean, size]), axes)

    return apply


def _reduce(operation: str) -> Operation:
    def apply(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
        reduced, (value,) = equation.params["axes"], inputs
        if not reduced:
            return value
        places = [place for place, axis in enumerate(value.axes) if axis in reduced]
        name = graph.node(operation, [value.name, graph.constant(places, np.int64)], keepdims=0)
        return Tensor(name, _without(value.axes, reduced))

    return apply


def _without(axes: Axes, removed: Sequence[Any]) -> Axes:
    """Returns the order of the axes that are left, numbered anew."""
    left = [axis for axis in axes if axis not in removed]
    return tuple(sorted(left).index(axis) for axis in left)


def _squeeze(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    removed, (value,) = equation.params["dimensions"], inputs
    places = [place for place, axis in enumerate(value.axes) if axis in removed]
    name = graph.node("Squeeze", [value.name, graph.constant(places, np.int64)])
    return Tensor(name, _without(value.axes, removed))


def _product(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    ((left,), (right,)), batch = _contraction(equation)
    _require(not any(batch), "batched matrix products")
    ranks = [len(variable.aval.shape) for variable in equation.invars]
    _require(ranks[1] == 2 or ranks == [2, 1], f"products of arrays with {ranks} axes")
    others = [axis for axis in range(ranks[0]) if axis != left]
    first = graph.arranged(inputs[0], (*others, left))
    second = graph.arranged(inputs[1], (right, *(a for a in range(ranks[1]) if a != right)))
    name = graph.node("MatMul", [first, second])
    return Tensor(name, tuple(range(len(equation.outvars[0].aval.shape))))


def _contraction(equation: Any) -> Any:
    contracted, batch = equation.params["dimension_numbers"]
    _require(len(contracted[0]) == 1, f"products over {len(contracted[0])} axes")
    return contracted, batch


def _reshape(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    shape = equation.params["new_sizes"]
    _require(equation.params["dimensions"] is None, "reshaping with a permutation")
    return _reshaped(graph, graph.plain(inputs[0]), shape)


def _reshaped(graph: Graph, name: str, shape: Sequence[Any]) -> Tensor:
    sizes = [size if isinstance(size, int) else -1 for size in shape]
    _require(sizes.count(-1) <= 1, f"the shape {tuple(shape)}")
    target = graph.constant(sizes, np.int64)
    return Tensor(graph.node("Reshape", [name, target]), tuple(range(len(sizes))))


def _broadcast(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
    before = equation.invars[0].aval.shape
    placed = [1] * len(shape)
    for axis, size in zip(kept, before, strict=True):
        placed[axis] = size
    value = _reshaped(graph, graph.plain(inputs[0]), placed)
    if all(one == other for one, other in zip(placed, shape, strict=True)):
        return value
    grown = [b for a, b in zip(placed, shape, strict=True) if a != b]
    _require(not is_symbolic(grown), f"repeating along the batch to {tuple(shape)}")
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    return Tensor(graph.node("Expand", [value.name, graph.constant(sizes, np.int64)]), value.axes)


def _transpose(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    del graph
    order, (value,) = list(equation.params["permutation"]), inputs
    return Tensor(value.name, tuple(order.index(axis) for axis in value.axes))


def _concatenate(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    names, axes = _arranged(graph, inputs)
    place = axes.index(equation.params["dimension"])
    return Tensor(graph.node("Concat", names, axis=place), axes)


def _slice(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    p, (value,) = equation.params, inputs
    shape = equation.invars[0].aval.shape
    limits = zip(p["limit_indices"], shape, strict=True)
    ends = [_END if end == size else end for end, size in limits]
    strides = p["strides"] or (1,) * len(shape)
    _require(not is_symbolic([*ends, *p["start_indices"]]), "a part of the batch")
    starts, ends, strides = (
        graph.constant([each[axis] for axis in value.axes], np.int64)
        for each in (p["start_indices"], ends, strides)
    )
    places = graph.constant(range(len(shape)), np.int64)
    return Tensor(graph.node("Slice", [value.name, starts, ends, places, strides]), value.axes)


def _pad(graph: Graph, equation: Any, inputs: list[Any]) -> Tensor:
    value, filling = inputs
    settings = equation.params["padding_config"]
    _require(isinstance(filling, np.ndarray), "padding with computed values")
    _require(all(inner == 0 for *_, inner in settings), "padding between entries")
    pads = [settings[axis][end] for end in (0, 1) for axis in value.axes]
    _require(min(pads) >= 0, "negative padding")
    inputs = [value.name, graph.constant(pads, np.int64), graph.constant(filling)]
    return Tensor(graph.node("Pad", inputs), value.axes)


_CALLED_THE_SAME = "add mul div min neg exp log tanh sqrt abs erf sign floor ceil pow and or not"

OPERATIONS: dict[str, Operation] = {
    **{name: _elementwise(name.capitalize()) for name in _CALLED_THE_SAME.split()},
    "sub": _sub,
    "max": _max,
    "rsqrt": _elementwise("Sqrt", "Reciprocal"),
    "logistic": _elementwise("Sigmoid"),
    "integer_pow": _integer_pow,
    "square": _square,
    "log1p": _log1p,
    "expm1": _expm1,
    "clamp": _clamp,
    "select_n": _select,
    "gt": _elementwise("Greater"),
    "ge": _elementwise("GreaterOrEqual"),
    "lt": _elementwise("Less"),
    "le": _elementwise("LessOrEqual"),
    "eq": _elementwise("Equal"),
    "ne": _elementwise("Equal", "Not"),
    "copy": _same,
    "convert_element_type": _convert,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "squeeze": _squeeze,
    "dot_general": _product,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "slice": _slice,
    "pad": _pad,
}
