"""An ONNX graph that is being built, and its tensors."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Axes = tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor of the graph, which may have its axes in another order than JAX's array.

    Attributes:
        name: Its name in the graph.
        axes: Axis i of the tensor is axis axes[i] of JAX's array.
    """

    name: str
    axes: Axes


class Graph:
    """Nodes and constants, each with a name of its own.

    Attributes:
        nodes: ONNX's nodes, in order.
        constants: ONNX's initialisers.
    """

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._named: dict[tuple[Any, ...], str] = {}

    def node(self, operation: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Adds a node with one output.

        Args:
            operation: ONNX's name of the operation.
            inputs: Names of tensors.
            **attributes: Attributes of the operation.

        Returns:
            The name of its output.
        """
        from onnx import helper

        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name, **attributes))
        return name

    def constant(self, array: Any, dtype: Any = None) -> str:
        """Adds a constant, or finds the one with this value.

        Args:
            array: Its value.
            dtype: Its type; None keeps that of the array.

        Returns:
            Its name.
        """
        from onnx import numpy_helper

        array = np.asarray(array, dtype, order="C")
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._named:
            self._named[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._named[key]))
        return self._named[key]

    def arranged(self, value: Any, axes: Axes) -> str:
        """Returns the name of a tensor with the value's axes in the wanted order.

        Args:
            value: A `Tensor`, or a known NumPy array.
            axes: JAX's axes in the order that the tensor shall have.
        """
        if isinstance(value, Tensor):
            if value.axes == axes:
                return value.name
            return self.node("Transpose", [value.name], perm=[value.axes.index(a) for a in axes])
        return self.constant(value.transpose(axes) if value.ndim else value)

    def plain(self, value: Any) -> str:
        """Returns the name of a tensor with the value's axes in JAX's order."""
        rank = len(value.axes) if isinstance(value, Tensor) else value.ndim
        return self.arranged(value, tuple(range(rank)))
