"""How a checkpoint is to be read, checked as far as that goes without the file."""

import math
from typing import Any, NamedTuple

from harp_jax import models
from harp_jax.export.errors import FileError
from harp_jax.interop import normalizing
from harp_jax.interop.layouts import DEFAULT_SHAPE, IMAGE_SHAPES
from harp_jax.models.blocks import MOST_WIDTH
from harp_jax.settings import is_number

ALPHA = 0.1  # the HARP authors'


class Options(NamedTuple):
    """How a checkpoint is to be read; see `harp_jax.interop.read`."""

    model: str
    image_shape: tuple[int, int, int] = DEFAULT_SHAPE
    target: float | None = None
    alpha: float | None = None
    rate: float | None = None
    normalization: Any = None
    num_classes: int | None = None
    width: float = 1.0
    key: str | None = None
    ignore: tuple[str, ...] = ()

    @property
    def minimum(self) -> float:
        """HARP's smallest rate, target * alpha."""
        return (self.target or 0) * (ALPHA if self.alpha is None else self.alpha)


def checked(model: str, given: dict[str, Any]) -> Options:
    """Makes options of what was given.

    Args:
        model: Name of the network.
        given: Arguments of `harp_jax.interop.read` by name.

    Raises:
        FileError: If one is of no allowed value, or two do not go together.
    """
    if model not in models.MODELS:
        raise FileError(f"model={model!r}: allowed are {', '.join(models.MODELS)}")
    shape = given.pop("image_shape", None)
    shape = IMAGE_SHAPES.get(model, DEFAULT_SHAPE) if shape is None else tuple(shape)
    options = Options(model, shape, **given)
    _check_rates(options)
    if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in shape):
        raise FileError(f"image_shape={shape}: allowed are height, width and channels")
    classes = options.num_classes
    if classes is not None and (type(classes) is not int or not 2 <= classes <= 2**24):
        raise FileError(f"num_classes={classes!r}: allowed are whole numbers >= 2")
    if not is_number(options.width) or not 0 < options.width <= MOST_WIDTH:
        raise FileError(f"width={options.width!r}: allowed are numbers in (0, {MOST_WIDTH:g}]")
    normalizing.check(options.normalization, shape[-1])
    return options._replace(ignore=tuple(options.ignore))


def _check_rates(options: Options) -> None:
    for name, allowed in (("target", "(0, 1)"), ("alpha", "[0, 1]"), ("rate", "(0, 1]")):
        value = getattr(options, name)
        if value is None:
            continue
        number = isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
        outside = (value == 0 and allowed[0] == "(") or (value == 1 and allowed[-1] == ")")
        if not number or outside:
            raise FileError(f"{name}={value!r}: allowed are numbers in {allowed}")
    if options.target is not None and options.rate is not None:
        raise FileError(
            f"target={options.target}, rate={options.rate}: allowed is one of them, target for"
            " HARP's checkpoints, rate for HYDRA's"
        )
    if options.alpha is not None and options.target is None:
        raise FileError(f"alpha={options.alpha}: allowed beside a target only")
