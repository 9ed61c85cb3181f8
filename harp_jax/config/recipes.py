"""Sets of options by one name: `prune.recipe`."""

from harp_jax.config.defaults import RECIPES, Config, default

# Fields that only masks of single weights have a use for.
_OF_WEIGHTS = ("prune.live",)


def with_recipe(config: Config) -> Config:
    """Returns a copy of a configuration with the values that its recipe gives to fields.

    A field with another value than its default keeps it. Whether the recipe fits the method is not
    checked here, see `validate`.

    Args:
        config: A configuration whose fields have the right types and ranges.

    Returns:
        The copy. Applied again, the recipe changes nothing.
    """
    known, copy = default(), config.copy_and_resolve_references()
    left = _OF_WEIGHTS if config.prune.granularity == "channel" else ()
    for field, value in RECIPES[config.prune.recipe].items():
        section, _, own = field.partition(".")
        if field not in left and copy[section][own] == known[section][own]:
            copy[section][own] = value
    return copy
