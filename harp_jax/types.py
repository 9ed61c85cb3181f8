"""Array types with their shapes, shared by all modules.

Images are NHWC on the [0, 1] scale; kernels are HWIO (convolution) or IO (dense), as in Flax. Only
the tests check the annotations at run time (see `tests/conftest.py`); elsewhere they cost nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, Key, UInt8

Images = Float[Array, "batch height width channels"]  # in [0, 1]
RawImages = UInt8[Array, "batch height width channels"]  # stored pixels, 0..255
Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean, standard deviation; per channel
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
# One key for all examples or one per example. With one per example, its draw does not depend on how
# the batch is sharded over devices.
ExampleKeys = Key[Array, ""] | Key[Array, " batch"]

Device: TypeAlias = Any  # a jax.Device, which type checkers do not accept as a type

Variables = Mapping[str, Any]  # 'params', 'batch_stats'; pruned also 'scores', 'rates', ...
LogitsFn = Callable[[Images], Logits]


@runtime_checkable
class Model(Protocol):
    """A linen module, or an object that stands for one (`models.sparse`)."""

    def apply(self, variables: Variables, *args: Any, **kwargs: Any) -> Any:
        """Computes as `flax.linen.Module.apply` does."""
        ...
