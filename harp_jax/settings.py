"""Settings as frozen dataclasses: built from plain values, checked field by field."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, get_type_hints

import numpy as np

from harp_jax.names import hint, one_of

T = TypeVar("T")

# Limits of the numbers that float32 and int32 can compute with, and some way from their ends.
SMALLEST, LARGEST, MOST = 1e-30, 1e30, 2**31 - 1
WHOLE, NUMBERS = f"whole numbers up to {MOST}", f"numbers up to {LARGEST:g}, not nan or inf"
_WORDS = {bool: "True, False", int: WHOLE, float: NUMBERS, str: "names, as text"}


def check(settings: object, field: str, allowed: bool, what: str, near: str = "") -> None:
    """Checks a field of a dataclass, in its `__post_init__`.

    Args:
        settings: Dataclass with the attribute `field`.
        field: Name of the field.
        allowed: Whether its value is allowed.
        what: Allowed values, in words.
        near: What was meant, from `names.hint`.

    Raises:
        ValueError: If the value is not allowed; names field, value and allowed values.
    """
    if not allowed:
        raise ValueError(f"{field}={getattr(settings, field)!r}: {near}allowed are {what}")


def check_name(settings: object, field: str, names: Collection[str]) -> None:
    """Checks that a field of a dataclass is one of some names, in its `__post_init__`.

    Args:
        settings: Dataclass with the attribute `field`.
        field: Name of the field.
        names: The allowed names.

    Raises:
        ValueError: If it is another; names field, value, the nearest name and the allowed ones.
    """
    value = getattr(settings, field)
    if value not in names:
        raise ValueError(f"{field}={value!r}: {one_of(value, names)}")


def plain(value: Any) -> Any:
    """Returns a scalar of NumPy as Python's, the items of a tuple or list too; others as given."""
    if isinstance(value, np.generic):
        return value.item()
    return type(value)(map(plain, value)) if type(value) in (tuple, list) else value


def is_number(value: Any) -> bool:
    """Returns whether a value is a number that float32 can hold: no bool, nan or infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number that int32 can hold: no bool, no 1.0."""
    return type(value) is int and abs(value) <= MOST


def defaults(kind: type) -> dict[str, Any]:
    """Returns the defaults of a dataclass, by field; fields without a default are left out."""
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def build(kind: type[T], values: Mapping[str, Any], section: str) -> T:
    """Builds a dataclass from plain values.

    Args:
        kind: A frozen dataclass with fields of type int, float, bool or str, whose ranges it checks
            itself.
        values: Values by field; fields that are left out get their default. NumPy's scalars count
            as Python's.
        section: Section of the configuration with the values, for error messages.

    Returns:
        The settings.

    Raises:
        ValueError: If a field is unknown, missing, of another type or refused by the dataclass;
            names the first such field, its value and the allowed values. If `kind` is no dataclass.
    """
    if not (dataclasses.is_dataclass(kind) and is_frozen_dataclass(kind)):
        raise ValueError(f"{section}: is made of {kind!r}; allowed are frozen dataclasses")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    try:
        types = get_type_hints(kind)
    except Exception as error:  # a user's annotation may be anything
        raise ValueError(
            f"{section}: the types of {kind.__name__} cannot be read ({_said(error)}); allowed are"
            " int, float and str"
        ) from error
    values = {name: plain(value) for name, value in values.items()}
    for name, value in values.items():
        allowed = None
        if name not in fields:
            allowed = f"{hint(name, fields)}allowed are the fields {', '.join(fields)}"
        elif not _is_of(types[name], value):
            allowed = f"allowed are {_WORDS.get(types[name], 'plain values')}"
        if allowed is not None:
            raise ValueError(f"{section}.{name}={value!r}: {allowed}")
    missing = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if missing:
        wanted = " and ".join(map(repr, missing))
        raise ValueError(f"{section}={dict(values)!r}: allowed are settings with {wanted}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{section}.{' '.join(str(error).split())}") from None
    except Exception as error:  # a user's __post_init__ may raise anything
        raise ValueError(
            f"{section}={dict(values)!r}: cannot be built ({_said(error)}); allowed are settings"
            f" that {kind.__name__} takes"
        ) from error


def is_frozen_dataclass(kind: object) -> bool:
    """Returns whether an object is a class that `build` can build."""
    parameters = getattr(kind, "__dataclass_params__", None)
    return isinstance(kind, type) and parameters is not None and parameters.frozen


def _is_of(kind: Any, value: Any) -> bool:
    """Returns whether a plain value is of a field's type; other types than ours take numbers."""
    if kind is str or isinstance(value, str):
        return kind is str and isinstance(value, str)
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return is_whole(value)
    return is_number(value) or (kind is not float and isinstance(value, bool))


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
