"""The format 'onnx': the network as an ONNX graph, translated from what JAX traces.

The graph takes 'images', float32 NHWC in [0, 1] as everywhere in this package, any number of them,
and gives 'logits'. Its metadata say so, beside the network's. Kernels stay dense, masks applied.
"""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from harp_jax.export import container
from harp_jax.export.errors import FileError
from harp_jax.export.onnx_graph import Graph, Tensor
from harp_jax.export.onnx_operations import OPERATIONS, UnsupportedError, is_symbolic
from harp_jax.export.trained import Trained, for_every_batch
from harp_jax.types import LogitsFn

NAME, VERSION = "harp_jax.onnx", 1
DTYPES = ("float32",)
OPSET, IR_VERSION = 18, 9  # read by onnxruntime since 1.14
# Where an equation's own jaxpr stands; these only group equations.
_INNER = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
}


def encode(trained: Trained) -> bytes:
    """Makes the content of an ONNX file; the network computes in float32.

    Args:
        trained: The network.

    Returns:
        The content.

    Raises:
        FileError: If the network has an operation without a translation; names it.
    """
    onnx = _onnx()
    trained = trained.in_float32()
    closed = for_every_batch(trained, lambda logits_fn, images: jax.make_jaxpr(logits_fn)(images))
    graph = Graph()
    inputs = [*map(np.asarray, closed.consts), Tensor("images", tuple(range(4)))]
    (found,) = _walk(graph, closed.jaxpr, inputs)
    graph.nodes.append(onnx.helper.make_node("Identity", [graph.plain(found)], ["logits"]))
    kind = onnx.TensorProto.FLOAT
    info = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        graph.nodes,
        trained.metadata["model"],
        [info("images", kind, ["batch", *trained.image_shape])],
        [info("logits", kind, ["batch", trained.metadata["num_classes"]])],
        graph.constants,
    )
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION)
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    metadata = {
        **trained.metadata,
        "format": NAME,
        "version": VERSION,
        "input": "images: float32 NHWC in [0, 1]",
        "digest": digest,  # of the model without metadata
    }
    texts = {name: container.as_json(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def function(content: bytes) -> LogitsFn:
    """Returns the function of an ONNX file, run by onnxruntime, or else by ONNX' own evaluator.

    Args:
        content: The whole file.
    """
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        model: Any = ReferenceEvaluator(_onnx().load_from_string(content))
    else:
        model = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def logits(images: Any) -> Any:
        return model.run(["logits"], {"images": np.asarray(images, np.float32)})[0]

    return logits


def _onnx() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.helper
    except ImportError as error:
        raise FileError(
            "format='onnx': needs the package onnx; allowed with pip install harp_jax[onnx]"
        ) from error
    return onnx


def _walk(graph: Graph, jaxpr: Any, inputs: list[Any]) -> list[Any]:
    """Adds the equations of a jaxpr to the graph.

    Args:
        graph: Graph to add to.
        jaxpr: An open jaxpr.
        inputs: Values of its constants and inputs, in order: a `Tensor` of the graph, or a NumPy
            array where the value does not depend on the images.

    Returns:
        Values of its outputs.
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], inputs, strict=True))

    def value(variable: Any) -> Any:
        return np.asarray(variable.val) if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        found = _translate(graph, equation, [value(each) for each in equation.invars])
        values.update(zip(equation.outvars, found, strict=True))
    return [value(each) for each in jaxpr.outvars]


def _translate(graph: Graph, equation: Any, inputs: list[Any]) -> list[Any]:
    name = equation.primitive.name
    if name in _INNER:
        inner = equation.params[_INNER[name]]
        consts = list(map(np.asarray, getattr(inner, "consts", ())))
        return _walk(graph, getattr(inner, "jaxpr", inner), [*consts, *inputs])
    if not any(isinstance(each, Tensor) for each in inputs):
        return _evaluated(equation, inputs)
    if name not in OPERATIONS:
        raise FileError(
            f"format='onnx': no translation of JAX's operation {name!r}; allowed are"
            f" {', '.join(sorted(OPERATIONS))}"
        )
    try:
        _check_whole(equation, inputs)
        return [OPERATIONS[name](graph, equation, inputs)]
    except UnsupportedError as error:
        raise FileError(
            f"format='onnx': no translation of JAX's operation {name!r} with {error}"
        ) from error


def _check_whole(equation: Any, inputs: list[Any]) -> None:
    """Refuses constants kept as one example where the whole batch is needed; see `_evaluated`."""
    if equation.primitive.name in ("concatenate", "conv_general_dilated", "dot_general"):
        for variable, value in zip(equation.invars, inputs, strict=True):
            if not isinstance(value, Tensor) and value.shape != variable.aval.shape:
                raise UnsupportedError("constants along the batch")


def _evaluated(equation: Any, inputs: list[Any]) -> list[Any]:
    """Computes an equation whose inputs are known."""
    name, shapes = equation.primitive.name, [v.aval.shape for v in equation.outvars]
    if not any(map(is_symbolic, shapes)):
        found = equation.primitive.bind(*inputs, **equation.params)
        return list(map(np.asarray, found if equation.primitive.multiple_results else [found]))
    if name == "broadcast_in_dim":  # along the batch all entries are the same: one is enough
        placed = [1] * len(shapes[0])
        for axis, size in zip(
            equation.params["broadcast_dimensions"], inputs[0].shape, strict=True
        ):
            placed[axis] = size
        return [inputs[0].reshape(placed)]
    raise FileError(f"format='onnx': {name!r} makes an array of the batch's size from constants")
