"""Sets of options by one name: `prune.recipe`."""

from collections.abc import Iterable

from harp_jax.config.defaults import RECIPES, Config, default
from harp_jax.config.sections import require
from harp_jax.methods import METHODS


def with_recipe(config: Config) -> Config:
    """Returns a copy of a configuration with the values that its recipe gives to fields.

    A field with another value than its default keeps it. Live connections are left out for
    channels, and `prune.window` for all methods but those of the package whose rates learn. Whether
    the recipe fits the method is not checked here, see `validate`.

    Args:
        config: A configuration whose fields have the right types and ranges.

    Returns:
        The copy. Applied again, the recipe changes nothing.
    """
    copy, chosen = config.copy_and_resolve_references(), RECIPES[config.prune.recipe]
    if not chosen:
        return copy
    known, left = default(), set[str]()
    if config.prune.granularity == "channel":
        left.add("prune.live")
    known_method = METHODS.get(config.prune.method)  # one's own is not imported here
    if known_method is None or "rates" not in known_method.trains:
        left.add("prune.window")
    for field, value in chosen.items():
        section, _, own = field.partition(".")
        if field not in left and copy[section][own] == known[section][own]:
            copy[section][own] = value
    return copy


def check_given(config: Config, given: Iterable[str]) -> None:
    """Checks that the recipe leaves fields alone that a user gives by name.

    A value that is the default looks like one that nobody gave, so the recipe would replace it.

    Args:
        config: A configuration whose fields have the right types and ranges.
        given: Names of the fields, such as 'prune.live'.

    Raises:
        ConfigError: For the first one that the recipe sets.
    """
    name, found = config.prune.recipe, with_recipe(config)
    for field in (field for field in given if field in RECIPES[name]):
        above, _, own = field.partition(".")
        allowed = f"other values than the default with prune.recipe={name!r}, which sets"
        value = found[above][own]
        require(value == config[above][own], field, config[above][own], f"{allowed} {value!r}")
