"""Sets of options by one name: `prune.recipe`."""

from harp_jax.config.defaults import RECIPES, Config, default
from harp_jax.config.sections import method, require

# Fields that only masks of single weights have a use for.
_OF_WEIGHTS = ("prune.live",)


def with_recipe(config: Config) -> Config:
    """Returns a copy of a configuration with the values that its recipe gives to fields.

    A field with another value than its default keeps it.

    Args:
        config: A configuration whose fields follow the rules.

    Returns:
        The copy. Applied again, the recipe changes nothing.

    Raises:
        ConfigError: For a recipe with values and a method that it does not fit.
    """
    name, known = config.prune.recipe, default()
    copy = config.copy_and_resolve_references()
    if not RECIPES[name]:
        return copy
    chosen = method(config)
    fits = chosen.learns_masks and (config.prune.joint or "weights" not in chosen.trains)
    allowed = f"'paper' with the method {config.prune.method!r}, whose masks do not learn"
    require(fits, "prune.recipe", name, allowed)
    left = _OF_WEIGHTS if config.prune.granularity == "channel" else ()
    for field, value in RECIPES[name].items():
        section, _, own = field.partition(".")
        if field not in left and copy[section][own] == known[section][own]:
            copy[section][own] = value
    return copy
