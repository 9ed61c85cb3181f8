"""Looking up a name: a row of a table of the package, or "module:attribute"; and showing names."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

OWN = "package.module:NAME"


def find(table: Mapping[str, T], name: Any, field: str) -> T:
    """Looks up a name.

    Args:
        table: Entries of the package, by name.
        name: A key of the table, or 'package.module:NAME', which is imported.
        field: Field of the configuration that holds the name, for error messages.

    Returns:
        The entry of the table or the attribute of the module.

    Raises:
        ValueError: If the table has no such name, or the module cannot be imported (with the
            reason) or has no such attribute; in one line.
    """
    if isinstance(name, str) and ":" in name:
        return _imported(name, field)
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{field}={name!r}: {one_of(name, table)}, or {OWN}")
    return table[name]


def printable(text: str) -> str:
    """Returns a text in one line, without what a terminal would act on: '?' stands for that."""
    return "".join(each if each.isprintable() else "?" for each in " ".join(text.split()))


def hint(name: Any, known: Iterable[str]) -> str:
    """Returns "did you mean 'NAME'? " for a misspelt name, '' if none is near.

    Args:
        name: Any value.
        known: The names to choose from.
    """
    close = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f"did you mean {close[0]!r}? " if close else ""


def one_of(name: Any, known: Iterable[str]) -> str:
    """Says which names are allowed, the nearest one first: "did you mean ...? allowed are ..."."""
    known = list(known)
    return f"{hint(name, known)}allowed are {', '.join(known)}"


def _imported(name: str, field: str) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{field}={name!r}: cannot import {module_name!r} ({reason}); allowed are modules on"
            " Python's path"
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(f"{field}={name!r}: {module_name} has no {attribute!r}; allowed are {OWN}")
    return getattr(module, attribute)
