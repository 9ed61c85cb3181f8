"""Finds a network's arrays in a checkpoint: at which level, and behind which prefix of the keys."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harp_jax.export.errors import FileError
from harp_jax.interop.layouts import Layout
from harp_jax.interop.report import printable
from harp_jax.interop.tensors import Tensor

_DEEPEST = 3  # of dicts in dicts
_MOST_NAMED = 10  # choices in an error


class Choice(NamedTuple):
    """A place where a network's arrays may be.

    Attributes:
        level: Keys of the dicts around it, joined by '.'; '' for the file itself.
        prefix: Of all its keys, such as 'module.'.
        entries: The dict at that level.
        layout: Of the network with as many classes as the last layer there.
    """

    level: str
    prefix: str
    entries: Mapping[Any, Any]
    layout: Layout

    @property
    def name(self) -> str:
        """The level, and the prefix behind a ':'; what `key` takes."""
        return f"{self.level}:{self.prefix}" if self.prefix else self.level

    def missing(self) -> list[str]:
        """Returns the network's keys that are not there."""
        wanted = (f"{self.prefix}{name}" for name in self.layout.arrays)
        return [key for key in wanted if not isinstance(self.entries.get(key), Tensor)]

    def wrong(self) -> dict[str, str]:
        """Returns what is wrong with the shapes, by key."""
        found = {}
        for name, (_, shape) in self.layout.arrays.items():
            array = self.entries.get(f"{self.prefix}{name}")
            if isinstance(array, Tensor) and array.shape != shape:
                found[f"{self.prefix}{name}"] = f"{array.shape}, not {shape}"
        return found

    def fits(self) -> bool:
        """Returns whether all of the network's arrays are there."""
        return not self.missing() and not self.wrong()


def choose(
    content: Any, of_classes: Callable[[int], Layout], num_classes: int | None, key: str | None
) -> tuple[Choice, list[Choice]]:
    """Finds the one place with a network's arrays.

    Args:
        content: What is in the file.
        of_classes: Gives the layout of the network for a number of classes.
        num_classes: The number; None for that of the last layer in the file.
        key: Name of a level or of a choice, to choose among several.

    Returns:
        (choice, others): if none fits, the one that lacks the least; others that fit as well.

    Raises:
        FileError: If there are no arrays, nothing is at `key`, or several places fit.
    """
    levels = dict(found := list(_levels(content)))
    if len(levels) != len(found):
        twice = next(name for name, entries in found if levels[name] is not entries)
        raise FileError(f"key={twice!r}: stands for two places; allowed are keys without dots")
    if not levels:
        raise FileError("has no arrays by name; allowed are dicts of tensors (a state_dict)")
    choices = [
        choice
        for level, entries in levels.items()
        for choice in _of_level(level, entries, of_classes, num_classes)
    ]
    given = [each for each in choices if key in (None, each.level, each.name, f"{each.level}:")]
    exact = [each for each in given if key in (each.name, f"{each.level}:{each.prefix}")]
    given = exact if key is not None and exact else given
    if not given:
        allowed = _named(choices)
        raise FileError(f"key={key!r}: nothing is there; allowed are {allowed}")
    fitting = [each for each in given if each.fits()]
    if len(fitting) > 1:
        raise FileError(
            f"key={key!r}: {len(fitting)} networks are in it; allowed are {_named(fitting)}"
        )
    if fitting:
        others = [each for each in choices if each.fits() and each.name != fitting[0].name]
        return fitting[0], others
    return min(given, key=lambda each: len(each.missing()) + len(each.wrong())), []


def _named(choices: Sequence[Choice]) -> str:
    return ", ".join(repr(printable(each.name)) for each in choices[:_MOST_NAMED])


def _levels(
    content: Any, names: Sequence[str] = (), above: Sequence[int] = ()
) -> Iterator[tuple[str, dict[Any, Any]]]:
    if not isinstance(content, dict) or len(names) > _DEEPEST or id(content) in above:
        return  # a dict may contain itself
    if any(isinstance(each, Tensor) and isinstance(name, str) for name, each in content.items()):
        yield ".".join(names), content
    for name, each in content.items():
        if isinstance(name, str):
            yield from _levels(each, (*names, name), (*above, id(content)))


def _of_level(
    level: str,
    entries: dict[Any, Any],
    of_classes: Callable[[int], Layout],
    num_classes: int | None,
) -> list[Choice]:
    """Returns a choice for every prefix with which the last layer is there."""
    last = of_classes(num_classes or 2).last
    for leaf in (last, last.removesuffix("weight") + "bias"):
        found = []
        for name, array in entries.items():
            if isinstance(name, str) and isinstance(array, Tensor) and name.endswith(leaf):
                prefix = name.removesuffix(leaf)
                if prefix and not prefix.endswith("."):
                    continue
                classes = array.shape[0] if array.shape and array.shape[0] >= 2 else 2
                layout = of_classes(num_classes or min(classes, 2**24))
                found.append(Choice(level, prefix, entries, layout))
        if found:
            return found
    return [Choice(level, "", entries, of_classes(num_classes or 2))]
