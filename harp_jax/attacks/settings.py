"""One wording for the settings that an attack refuses."""


def check(attack: object, field: str, allowed: bool, what: str) -> None:
    """Refuses a setting of an attack.

    Args:
        attack: Has the attribute `field`.
        field: Name of the setting.
        allowed: Whether its value is allowed.
        what: The allowed values, in words.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    if not allowed:
        raise ValueError(f"{field}={getattr(attack, field)!r}: allowed are {what}")
