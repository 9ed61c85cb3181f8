"""Settings as frozen dataclasses: built from plain values, checked field by field."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def check(settings: object, field: str, allowed: bool, what: str) -> None:
    """Checks a field of a dataclass, in its `__post_init__`.

    Args:
        settings: Dataclass with the attribute `field`.
        field: Name of the field.
        allowed: Whether its value is allowed.
        what: Allowed values, in words.

    Raises:
        ValueError: If the value is not allowed; names field, value and allowed values.
    """
    if not allowed:
        raise ValueError(f"{field}={getattr(settings, field)!r}: allowed are {what}")


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
        kind: A frozen dataclass with fields of type int, float or str, which checks them itself.
        values: Values by field; fields that are left out get their default.
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
    for name, value in values.items():
        where = f"{section}.{name}={value!r}: allowed are"
        if name not in fields:
            raise ValueError(f"{where} the fields {', '.join(fields)}")
        if not isinstance(value, int | float | str):
            raise ValueError(f"{where} plain values")
        is_text = types[name] is str
        if isinstance(value, str) != is_text:
            raise ValueError(f"{where} {'names, as text' if is_text else 'numbers'}")
        if types[name] is int and type(value) is not int:
            raise ValueError(f"{where} whole numbers")
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


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
