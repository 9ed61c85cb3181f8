"""The kinds of rules for a field: numbers, choices, text, flags, and tuples of them."""

import dataclasses
from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

from harp_jax import names, settings
from harp_jax.settings import LARGEST, MOST, SMALLEST


@runtime_checkable
class Rule(Protocol):
    """Rule of a field: which values are allowed."""

    @property
    def optional(self) -> bool:
        """Whether it may be unset."""
        ...

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed; NumPy's scalars come as Python's, None never."""
        ...

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value: "[did you mean ...? ]allowed are ..."."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """Whole numbers from `low` to `high`; True and 1.0 are none."""

    low: int = 0
    high: int = MOST
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        return type(value) is int and self.low <= value <= self.high

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value."""
        power = (self.high + 1).bit_length() - 1
        limit = f"< 2**{power}" if self.high + 1 == 2**power else f"<= {self.high}"
        return f"allowed are whole numbers >= {self.low} and {limit}"


@dataclasses.dataclass(frozen=True)
class Number:
    """Numbers in an interval that float32 can hold; True, nan and inf are none.

    Attributes:
        low: Lower end.
        high: Upper end.
        open: The ends that are not allowed themselves: '', 'low', 'high' or 'both'.
        pixels: Whether it is on the scale of pixels, where values up to 255 are likely meant /255.
        optional: Whether it may be unset.
    """

    low: float = 0.0
    high: float = LARGEST
    open: str = ""
    pixels: bool = False
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        if not settings.is_number(value) or not self.low <= value <= self.high:
            return False
        return not (self.open in ("low", "both") and value == self.low) and not (
            self.open in ("high", "both") and value == self.high
        )

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value."""
        return f"{self._hint(value)}allowed are {self.words()}"

    def words(self) -> str:
        """Says which numbers are in the interval."""
        ends = "(" if self.open in ("low", "both") else "["
        ends += f"{self.low:g}, {self.high:g}" + (")" if self.open in ("high", "both") else "]")
        if self.high == LARGEST:
            least = f"> {self.low:g}, from {SMALLEST:g}" if self.open else f">= {self.low:g}"
            ends = f"{least} to {LARGEST:g}" if self.open else f"{least}, up to {LARGEST:g}"
            return f"numbers {ends}"
        return f"numbers in {ends}"

    def _hint(self, value: Any) -> str:
        if not self.pixels or not settings.is_number(value) or not 1 < value <= 255:
            return ""
        return f"in units of [0, 1]; did you mean {value:g}/255 = {value / 255:.4g}? "


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some names.

    Attributes:
        names: The names.
        own: Whether 'module:NAME' is allowed too.
        prefixes: Beginnings of further names, as 'json:'.
        optional: Whether it may be unset.
    """

    names: Collection[str]
    own: bool = False
    prefixes: tuple[str, ...] = ()
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        if not isinstance(value, str):
            return False
        return value in self.names or (self.own and ":" in value) or value.startswith(self.prefixes)

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value."""
        others = [f"{prefix}PATH" for prefix in self.prefixes]
        others += [f"or {names.OWN}"] * self.own
        return ", ".join([names.one_of(value, self.names), *others])


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text.

    Attributes:
        what: What it names, for messages.
        empty: Whether '' is allowed.
        optional: Whether it may be unset.
    """

    what: str
    empty: bool = True
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        return isinstance(value, str) and "\0" not in value and (self.empty or value != "")

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value."""
        return f"allowed are {self.what}, as text"


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        return isinstance(value, bool)

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value."""
        return "allowed are True, False"


@dataclasses.dataclass(frozen=True)
class Several:
    """A tuple or list, each of whose items another rule accepts.

    Attributes:
        each: The rule of an item.
        empty: Whether it may be empty.
        optional: Whether it may be unset.
    """

    each: Rule
    empty: bool = False
    optional: bool = False

    def accepts(self, value: Any) -> bool:
        """Returns whether a value is allowed."""
        if not isinstance(value, tuple | list) or not (value or self.empty):
            return False
        return all(map(self.each.accepts, value))

    def allowed(self, value: Any) -> str:
        """Says what is allowed instead of a value."""
        of = "" if isinstance(value, tuple | list) and value else ", in a tuple"
        return self.each.allowed(self.wrong(value)) + of

    def wrong(self, value: Any) -> Any:
        """Returns the first item that is wrong; what is no list, and an empty one, as a whole."""
        if not isinstance(value, tuple | list):
            return value
        return next((item for item in value if not self.each.accepts(item)), value)
