"""Initial compression rates per layer (strategies) at a given overall rate."""

from collections.abc import Callable, Mapping

from harp_jax.pruning.layers import Path

Strategy = Callable[[Mapping[Path, int], float], dict[Path, float]]


def uniform(sizes: Mapping[Path, int], rate: float) -> dict[Path, float]:
    """The same rate in every layer (the authors' '010_uni' is `uniform` at 0.1).

    Args:
        sizes: Number of weights of every kernel, by path.
        rate: Fraction kept, in (0, 1].

    Returns:
        The rate of every path.
    """
    return dict.fromkeys(sizes, rate)


STRATEGIES: dict[str, Strategy] = {"uniform": uniform}
