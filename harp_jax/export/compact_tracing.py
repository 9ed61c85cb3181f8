"""Finds the nodes of a network in the program of its inference.

The program is JAX's own record of `model.apply`. What does not depend on the images is computed;
every other step becomes a node, of a kind that `compact_graph.Node` lists where there is one, else
a 'step', which keeps all its units. So any network is understood, however its modules are written.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from harp_jax.export import compact_steps
from harp_jax.export.compact_graph import Function, Graph, Node
from harp_jax.pruning.layers import layer_name, leaves_by_path
from harp_jax.types import Variables

_BATCH = compact_steps.TRACED[0]  # of the images: what is not 1 cannot be taken for it
_ALLOWED = "steps without loops, whose values have an axis of images, and have it first"
_ARITHMETIC = ("add", "sub", "mul", "div")
_ELEMENTWISE = {
    *("abs", "neg", "sign", "square", "sqrt", "rsqrt", "integer_pow", "pow", "floor", "ceil"),
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "erf", "sin", "cos", "tanh", "round"),
    *("max", "min", "clamp", "select_n", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not"),
    *("is_finite", "convert_element_type"),
}


def trace(model: nn.Module, variables: Variables, image_shape: Sequence[int]) -> Graph:
    """Finds the nodes of a network in inference mode.

    Args:
        model: Any network from NHWC images in [0, 1] to logits.
        variables: Its variables, with the masks applied.
        image_shape: (height, width, channels).

    Returns:
        The nodes, one for every step of the program.

    Raises:
        ValueError: If the network has a loop, or a step that does not keep images apart.
    """
    program, other = (
        jax.make_jaxpr(lambda tree, x: model.apply(tree, x, train=False))(
            variables, jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
        )
        for count in compact_steps.TRACED
    )
    leaves = [jnp.array(leaf) for leaf in jax.tree.leaves(variables)]  # no two are one object
    paths = leaves_by_path(jax.tree.unflatten(jax.tree.structure(variables), leaves))
    tracer = _Tracer({id(leaf): layer_name(path[1:]) for path, leaf in paths.items()})
    start = tracer.add("images", [], tuple(image_shape))
    (logits,) = tracer.run((program.jaxpr, other.jaxpr), program.consts, [*leaves, start])
    if not isinstance(logits, Node):
        raise ValueError("model: its logits do not depend on the images")
    tracer.graph.output = logits.name
    return tracer.graph


class _Tracer:
    """Runs a program in which some values are nodes and all others are arrays."""

    def __init__(self, layers: dict[int, str]) -> None:
        self.graph = Graph({}, {})
        self.layers = layers  # names of layers by the identity of their kernels

    def add(
        self,
        op: str,
        inputs: Sequence[Node],
        outputs: tuple[int, ...],
        name: str | None = None,
        arrays: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Node:
        """Adds a node, with a name that no other node has."""
        number = 1
        unique = name or ("images" if op == "images" else f"{op}1")
        while unique in self.graph.nodes:
            number += 1
            unique = f"{name}_{number}" if name else f"{op}{number}"
        node = Node(unique, op, tuple(node.name for node in inputs), outputs, **settings)
        self.graph.nodes[unique] = node
        if arrays is not None:
            self.graph.arrays[unique] = {
                key: np.array(array, np.float64) for key, array in arrays.items()
            }
        return node

    def affine(self, source: Node, scale: Any, bias: Any) -> Node:
        """Adds an 'affine' node with a scale and a bias per unit, or one for all."""
        units = source.outputs[-1:]
        arrays = {"scale": np.broadcast_to(scale, units), "bias": np.broadcast_to(bias, units)}
        return self.add("affine", [source], source.outputs, arrays=arrays)

    def run(
        self, programs: tuple[Any, Any], consts: Sequence[Any], arguments: Sequence[Any]
    ) -> list[Any]:
        """Runs a program; its results are nodes or arrays.

        Args:
            programs: The program for `_BATCH` images, and that for one more.
            consts: Its constants.
            arguments: Its inputs.
        """
        program, other = programs
        if len(program.eqns) != len(other.eqns):
            raise ValueError(f"model: takes other steps for more images; allowed are {_ALLOWED}")
        values: dict[Any, Any] = dict(zip(program.constvars, consts, strict=True))
        values |= zip(program.invars, arguments, strict=True)

        def read(atom: Any) -> Any:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval
                return jnp.asarray(atom.val, aval.dtype)
            return values[atom]

        for pair in zip(program.eqns, other.eqns, strict=True):
            equation = pair[0]
            results = self.step(pair, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in program.outvars]

    def step(self, pair: tuple[Any, Any], inputs: list[Any]) -> Sequence[Any]:
        """Runs one equation, given as it is for `_BATCH` images and for one more."""
        equation, other = pair
        name, settings = equation.primitive.name, equation.params
        if name == "platform_index":  # of the branches those of no special platform
            return [np.int32(settings["platforms"].index(None))]
        if name == "cond" and not isinstance(inputs[0], Node):
            branch, twin = (each.params["branches"][int(inputs[0])] for each in pair)
            return self.run((branch.jaxpr, twin.jaxpr), branch.consts, inputs[1:])
        for key in ("jaxpr", "call_jaxpr"):
            inner = settings.get(key)
            if name not in ("scan", "while") and hasattr(inner, "eqns"):
                twin = other.params[key]
                programs = (getattr(inner, "jaxpr", inner), getattr(twin, "jaxpr", twin))
                return self.run(programs, getattr(inner, "consts", ()), inputs)
        if not any(isinstance(value, Node) for value in inputs):
            results = equation.primitive.bind(*inputs, **settings)
            return results if equation.primitive.multiple_results else [results]
        node = None
        if len(equation.outvars) == 1 and all(
            value.outputs for value in inputs if isinstance(value, Node)
        ):
            node = self.node(equation, inputs, tuple(equation.outvars[0].aval.shape))
        return self.other(pair, inputs) if node is None else [node]

    def other(self, pair: tuple[Any, Any], inputs: list[Any]) -> list[Node]:
        """Makes the nodes of a step of no known kind, one for each result."""
        is_node = [isinstance(value, Node) for value in inputs]
        nodes = [value for value in inputs if isinstance(value, Node)]
        results = []
        for output, atom in enumerate(pair[0].outvars):
            found = compact_steps.step(pair, inputs, is_node, output)
            if found is None or pair[0].primitive.name in ("scan", "while", "cond"):
                shapes = [each.aval.shape for each in pair[0].invars]
                raise ValueError(
                    f"model: applies {pair[0].primitive.name!r} to {shapes}; allowed are {_ALLOWED}"
                )
            function, arrays = found
            shape = tuple(atom.aval.shape[1:])
            results.append(self.add("step", nodes, shape, arrays=arrays, function=function))
        return results

    def node(self, equation: Any, inputs: list[Any], shape: tuple[int, ...]) -> Node | None:
        """Makes the node of an equation; None if there is no such node."""
        name, settings = equation.primitive.name, equation.params
        source = inputs[0]
        repeats = any(isinstance(v, Node) and v.outputs != shape[1:] for v in inputs)
        if repeats and (name in _ARITHMETIC or name in _ELEMENTWISE):
            return None
        if name in _ARITHMETIC:
            return self.arithmetic(name, inputs) or self.elementwise(equation, inputs)
        if name == "max" and any(map(_is_zero, inputs)):
            (source,) = (value for value in inputs if isinstance(value, Node))
            return self.add("relu", [source], source.outputs)
        if name == "neg":
            return self.affine(source, -1.0, 0.0)
        if name == "convert_element_type":
            before, after = equation.invars[0].aval.dtype, settings["new_dtype"]
            if after in (jnp.bfloat16, jnp.float16):
                raise ValueError(f"model: computes in {jnp.dtype(after)}; allowed is float32")
            return source if before == after else self.elementwise(equation, inputs)
        if name in _ELEMENTWISE:
            return self.elementwise(equation, inputs)
        if name == "concatenate":
            return self.concatenation(settings, inputs, shape)
        if not isinstance(source, Node) or shape[0] != _BATCH:
            return None
        if name in ("copy", "copy_p", "reshape", "squeeze", "broadcast_in_dim"):
            return self.reshape(name, source, shape[1:])
        if any(isinstance(value, Node) for value in inputs[1:]):
            return None
        if name == "conv_general_dilated":
            return self.convolution(settings, source, inputs[1], shape[1:])
        if name == "dot_general":
            return self.dense(settings, source, inputs[1], shape[1:])
        if name == "reduce_sum" and settings["axes"] == (1, 2) and len(source.outputs) == 3:
            pixels = math.prod(source.outputs[:2])
            return self.affine(self.add("mean", [source], shape[1:]), pixels, 0.0)
        if name in ("reduce_window_max", "reduce_window_sum"):
            return self.pool(name, settings, source, shape[1:])
        return None

    def reshape(self, name: str, source: Node, shape: tuple[int, ...]) -> Node | None:
        """Leaves out what changes no shape, and flattens feature maps."""
        if shape == source.outputs:
            return source
        if name != "broadcast_in_dim" and shape == (math.prod(source.outputs),):
            return self.add("flatten", [source], shape)
        return None

    def arithmetic(self, name: str, inputs: Sequence[Any]) -> Node | None:
        """Makes the node of an addition or of a linear function of one node."""
        nodes = [value for value in inputs if isinstance(value, Node)]
        if len(nodes) == 2:
            if name == "add" and nodes[0].outputs == nodes[1].outputs:
                return self.add("add", nodes, nodes[0].outputs)
            return None
        first = isinstance(inputs[0], Node)
        number = _per_unit(inputs[1 if first else 0])
        if number is None or (name == "div" and not first):
            return None
        with np.errstate(divide="ignore"):
            scale, bias = {
                "add": (1.0, number),
                "sub": (1.0, -number) if first else (-1.0, number),
                "mul": (number, 0.0),
                "div": (1.0 / number, 0.0),
            }[name]
        return self.affine(nodes[0], scale, bias)

    def elementwise(self, equation: Any, inputs: Sequence[Any]) -> Node | None:
        """Makes the node of a function of nodes of one shape and of single numbers."""
        nodes = [value for value in inputs if isinstance(value, Node)]
        numbers = [value for value in inputs if not isinstance(value, Node)]
        if len({node.outputs for node in nodes}) > 1 or any(np.ndim(value) for value in numbers):
            return None
        operands = tuple(
            None if isinstance(value, Node) else np.asarray(value)[()] for value in inputs
        )
        function = Function(equation.primitive, tuple(equation.params.items()), operands)
        return self.add("elementwise", nodes, nodes[0].outputs, function=function)

    def concatenation(
        self, settings: Any, inputs: Sequence[Any], shape: tuple[int, ...]
    ) -> Node | None:
        """Makes the node of a concatenation along the last axis."""
        nodes = [value for value in inputs if isinstance(value, Node)]
        if len(nodes) < len(inputs) or settings["dimension"] != len(shape) - 1 or len(shape) < 2:
            return None
        return self.add("concat", nodes, shape[1:])

    def convolution(
        self, settings: Any, source: Node, kernel: Any, shape: tuple[int, ...]
    ) -> Node | None:
        """Makes the node of a two-dimensional convolution with zero padding."""
        numbers = settings["dimension_numbers"]
        layout = (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
        dilation = tuple(settings["rhs_dilation"])
        groups = settings["feature_group_count"]
        padding = tuple((int(low), int(high)) for low, high in settings["padding"])
        if (
            layout != ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
            or {*settings["lhs_dilation"], settings["batch_group_count"]} != {1}
            or min(map(min, padding)) < 0
        ):
            return None
        geometry = {"strides": tuple(settings["window_strides"]), "padding": padding}
        if set(dilation) != {1}:
            geometry["dilation"] = dilation
        depthwise = kernel.shape[-2:] == (1, groups)
        op = "conv" if groups == 1 else "depthwise" if depthwise else "grouped"
        window = kernel.shape[:2]
        return self.layer(op, source, kernel, shape, window=window, groups=groups, **geometry)

    def dense(
        self, settings: Any, source: Node, kernel: Any, shape: tuple[int, ...]
    ) -> Node | None:
        """Makes the node of a product along the last axis."""
        contracted, batched = settings["dimension_numbers"]
        axes = [tuple(dims) for dims in (*contracted, *batched)]
        if axes != [(len(source.outputs),), (0,), (), ()] or kernel.ndim != 2:
            return None
        return self.layer("dense", source, kernel, shape)

    def layer(
        self, op: str, source: Node, kernel: Any, shape: tuple[int, ...], **settings: Any
    ) -> Node:
        """Makes the node of a layer, with a bias of zeros."""
        arrays = {"kernel": kernel, "bias": np.zeros(shape[-1])}
        return self.add(op, [source], shape, self.layers.get(id(kernel), op), arrays, **settings)

    def pool(self, name: str, settings: Any, source: Node, shape: tuple[int, ...]) -> Node | None:
        """Makes the node of a pooling over height and width."""
        window, strides = settings["window_dimensions"], settings["window_strides"]
        padding = tuple((int(low), int(high)) for low, high in settings["padding"])
        dilation = {*settings["base_dilation"], *settings["window_dilation"]}
        outer = (*window[::3], *strides[::3], *padding[0], *padding[-1])
        if len(window) != 4 or outer != (1, 1, 1, 1, 0, 0, 0, 0) or dilation != {1}:
            return None
        op = "max_pool" if name == "reduce_window_max" else "avg_pool"
        geometry = {"window": window[1:3], "strides": strides[1:3], "padding": padding[1:3]}
        node = self.add(op, [source], shape, **geometry)
        return node if op == "max_pool" else self.affine(node, math.prod(window), 0.0)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, Node) and np.ndim(value) == 0 and float(value) == 0


def _per_unit(value: Any) -> np.ndarray | None:
    """Returns an array's entries along the last axis, if they are the same along all others."""
    array = np.asarray(value, np.float64)
    if array.ndim == 0:
        return array
    rows = array.reshape(-1, array.shape[-1])
    return rows[0] if len(rows) == 1 or (rows == rows[0]).all() else None
