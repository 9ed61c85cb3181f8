"""Settings as frozen dataclasses: made from plain values, checked field by field."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def check(settings: object, field: str, allowed: bool, what: str) -> None:
    """Refuses a value of a dataclass; for its `__post_init__`.

    Args:
        settings: Has the attribute `field`.
        field: Name of the setting.
        allowed: Whether its value is allowed.
        what: The allowed values, in words.

    Raises:
        ValueError: Names the field, its value and what is allowed.
    """
    if not allowed:
        raise ValueError(f"{field}={getattr(settings, field)!r}: allowed are {what}")


def defaults(kind: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, with it."""
    return {
        field.name: field.default
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def build(kind: type[T], values: Mapping[str, Any], section: str) -> T:
    """Makes a dataclass of plain values.

    Args:
        kind: A frozen dataclass whose fields are int, float or str and checked by itself.
        values: By field; those left out have their default.
        section: Where the values come from, for errors.

    Returns:
        The settings.

    Raises:
        ValueError: Names the first field that is unknown, missing, of another type or refused by
            the dataclass, its value and what is allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for name, value in values.items():
        where = f"{section}.{name}={value!r}: allowed are"
        if name not in fields:
            raise ValueError(f"{where} the fields {', '.join(fields)}")
        if not isinstance(value, int | float | str):
            raise ValueError(f"{where} plain values")
        is_text = fields[name].type is str
        if isinstance(value, str) != is_text:
            raise ValueError(f"{where} {'names, as text' if is_text else 'numbers'}")
        if fields[name].type is int and type(value) is not int:
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
        raise ValueError(f"{section}.{error}") from None
