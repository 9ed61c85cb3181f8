"""Docstrings use Markdown's backticks; Sphinx reads them as reStructuredText."""

import dataclasses
import re
from typing import Any

from sphinx.application import Sphinx

_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def as_rst(line: str) -> str:
    """Returns a line with code in double backticks, and bars and stars of prose as they are."""
    parts = _CODE.split(line)  # prose, code, prose, ...
    for place in range(0, len(parts), 2):
        parts[place] = re.sub(r"([|*])", r"\\\1", parts[place])
    return "".join(f"``{part}``" if place % 2 else part for place, part in enumerate(parts))


def _dataclass_fields(thing: Any) -> bool:
    return dataclasses.is_dataclass(thing) and bool(dataclasses.fields(thing))


def _convert(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    del app, what, name, options
    if getattr(thing, "__module__", getattr(thing, "__name__", "harp_jax")).startswith("harp_jax"):
        lines[:] = map(as_rst, lines)
        if getattr(thing, "_fields", ()) or _dataclass_fields(thing):
            lines[:] = ["Args:" if line == "Attributes:" else line for line in lines]


def _skip(
    app: Sphinx, what: str, name: str, thing: Any, skipped: bool, options: Any
) -> bool | None:
    """Leaves out the fields of a named tuple, which its own docstring describes."""
    del app, what, name, skipped, options
    return True if type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers both, the conversion before napoleon's."""
    app.connect("autodoc-process-docstring", _convert, priority=400)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
