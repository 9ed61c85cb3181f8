"""The fields of the configuration as Markdown."""

from typing import Any

from harp_jax.config import default
from harp_jax.config.fields import sections


def _escaped(words: str) -> str:
    return words.replace("*", r"\*").replace("<", r"\<")


def _value(value: Any) -> str:
    return "unset" if value is None else f"`{value!r}`"


def markdown() -> str:
    """Returns a definition list of all fields, a heading a section."""
    lines = []
    for section in sections():
        lines.append(f"## `{section.path}`\n" if section.path else "## The whole run\n")
        if section.words:
            lines.append(_escaped(section.words) + "\n")
        lines += [
            f"`{field.path}` = {_value(field.value)}\n: {_escaped(field.words)}\n"
            for field in section.fields
        ]
    return "\n".join(lines)


def attacks() -> str:
    """Returns a table of `config.evaluate.attacks`."""
    lines = ["| name | type | settings |", "|---|---|---|"]
    for name, settings in default().evaluate.attacks.items():
        fields = {field: value for field, value in settings.items() if field != "type"}
        told = ", ".join(
            field if field in ("epsilon", "step_size") else f"{field}={value}"
            for field, value in fields.items()
        )
        lines.append(f"| `{name}` | `{settings.type}` | {told} |")
    return "\n".join(lines)
