"""Says what an import took from a checkpoint, what it left out and why, and what is wrong."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

_SHOWN = 3  # keys in one line
_LONGEST = 120  # characters of a key


class Report(NamedTuple):
    """The keys of a checkpoint, compared with a network.

    Attributes:
        model: Name of the network.
        choice: The level, and the prefix behind a ':', where its arrays are.
        taken: Path in the network's variables, by key.
        ignored: Why a key is left out, by key.
        missing: Keys that the network needs and the file does not have.
        wrong: Shape that is there and shape that is needed, by key.
        unknown: Keys that nothing explains.
        notes: What a reader should know, in sentences.
    """

    model: str
    choice: str
    taken: dict[str, str]
    ignored: dict[str, str]
    missing: list[str]
    wrong: dict[str, str]
    unknown: list[str]
    notes: list[str]

    def problem(self) -> str | None:
        """Returns what forbids the import, in one line; None if nothing does."""
        parts = [
            f"{what}: {shown(keys)}"
            for what, keys in (
                ("missing", self.missing),
                ("other shape", [f"{key} {text}" for key, text in self.wrong.items()]),
                ("unknown", self.unknown),
            )
            if keys
        ]
        return "; ".join(parts) or None

    def as_json(self) -> dict[str, Any]:
        """Returns the report as JSON has it."""
        return self._asdict()

    def lines(self) -> list[str]:
        """Returns the report for a reader: counts, reasons, notes."""
        reasons: dict[str, list[str]] = {}
        for key, why in self.ignored.items():
            reasons.setdefault(why, []).append(key)
        found = [f"taken: {len(self.taken)} arrays of {self.model} at {self.choice!r}"]
        found += [f"left out: {shown(keys)}: {why}" for why, keys in reasons.items()]
        found += [f"missing: {printable(key)}" for key in self.missing]
        found += [f"other shape: {printable(key)} {text}" for key, text in self.wrong.items()]
        found += [f"unknown: {printable(key)}" for key in self.unknown]
        return found + [f"note: {note}" for note in self.notes]


def shown(keys: Collection[str] | Mapping[str, Any]) -> str:
    """Returns the first keys of many, and how many more there are."""
    first = [printable(key) for key in list(keys)[:_SHOWN]]
    more = f" and {len(keys) - len(first)} more" if len(keys) > len(first) else ""
    return ", ".join(first) + more


def printable(key: str) -> str:
    """Returns the beginning of a file's key, without what a terminal would act on."""
    text = "".join(each if each.isprintable() else "?" for each in key[:_LONGEST])
    return text if len(key) <= _LONGEST else f"{text}..."
