"""A configuration file that is wrong in several ways, for the tests of the command line."""

from harp_jax import config as harp


def get_config(how: str) -> object:
    """Does what is not allowed."""
    if how == "raises":
        raise RuntimeError("no\nluck")
    if how == "leaves":
        raise SystemExit(3)
    config = harp.default()
    if how == "misspelt":
        config.prune.tarrget = 0.1
    if how == "opens":
        return open("/nowhere/at/all")
    if how == "unset":
        config.batch_size = None
        return config
    if how == "missing":
        config.unlock()
        del config.prune.target
        return config
    return 5 if how == "number" else None
