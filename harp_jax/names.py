"""Names of things that a user may bring along: a row of a table, or "module:attribute"."""

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

OWN = "package.module:NAME"


def find(table: Mapping[str, T], name: Any, field: str) -> T:
    """What a name stands for.

    Args:
        table: The package's own, by name.
        name: A key of the table; or 'package.module:NAME', which is imported.
        field: Where the name comes from, for errors.

    Returns:
        The table's entry or the module's attribute.

    Raises:
        ValueError: In one line, for a name that is not in the table, a module that cannot be
            imported (the reason is said) or has no such attribute.
    """
    if isinstance(name, str) and ":" in name:
        return _imported(name, field)
    if name not in table:
        raise ValueError(f"{field}={name!r}: allowed are {', '.join(table)}, or {OWN}")
    return table[name]


def _imported(name: str, field: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{field}={name!r}: cannot import {module_name!r} ({reason}); allowed are modules on"
            " Python's path"
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(f"{field}={name!r}: {module_name} has no {attribute!r}; allowed are {OWN}")
    return getattr(module, attribute)
