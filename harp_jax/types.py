"""Array types with their shapes, shared by every module.

Images are NHWC on the [0, 1] scale, kernels HWIO (convolution) or IO (dense), as everywhere in
Flax. The annotations are checked at run time by the tests (see `tests/conftest.py`) and cost
nothing otherwise.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key, UInt8

Images = Float[Array, "batch height width channels"]  # in [0, 1]
RawImages = UInt8[Array, "batch height width channels"]  # as stored, 0..255
Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation; a number a channel
Labels = Int[Array, " batch"]
Logits = Float[Array, "batch classes"]
PerExample = Float[Array, " batch"]
Selection = Bool[Array, " batch"]

Kernel = Float[Array, "..."]  # HWIO or IO
Scores = Float[Array, "..."]  # the kernel's shape (weight) or [C_in] (channel granularity)
Mask = Float[Array, "..."]  # 0.0 or 1.0, broadcastable to the kernel
Scalar = Float[Array, ""]
Rate = Scalar  # fraction kept, in (0, 1]

PRNGKey = Key[Array, ""]
# One key for all examples, or one each: with one each, what is drawn for an example does not
# depend on how the batch is cut over devices.
ExampleKeys = Key[Array, ""] | Key[Array, " batch"]

Device: TypeAlias = Any  # a jax.Device, which type checkers do not take for a type

Variables = Mapping[str, Any]  # 'params', 'batch_stats' and, when pruned, 'scores', 'rates', ...
LogitsFn = Callable[[Images], Logits]
