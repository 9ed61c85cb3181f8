"""Weights that train as products of two factors, seen from outside as the weights themselves."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax

from harp_jax.pruning.layers import Path, leaves_by_path, tree_of_leaves
from harp_jax.types import Kernel

_NAMES = ("first", "second")

Split = Callable[[Kernel], tuple[Any, Any]]
Product = Callable[[Any, Any], Kernel]


class FactorsState(NamedTuple):
    """State of `factored`: everything that a resumed run needs.

    Attributes:
        factors: Nested dict with 'first' and 'second' in the place of each factored array.
        inner: State of the optimiser inside, over the factors and all other arrays.
    """

    factors: Any
    inner: Any


def factored(
    inner: optax.GradientTransformation, paths: Iterable[Path], split: Split, product: Product
) -> optax.GradientTransformation:
    """Lets an optimiser update the factors of arrays instead of these.

    Its weight decay and momentum act on the factors. The arrays become the product of the new ones.

    Args:
        inner: The optimiser.
        paths: Paths of the factored arrays in the tree that is updated.
        split: Computes the first factors of an array, whose product it is.
        product: Computes an array from its factors.

    Returns:
        A gradient transformation over a nested dict.
    """
    paths = tuple(paths)

    def replaced(tree: Any, pairs: dict[Path, Any]) -> Any:
        """Puts pairs in the place of the factored arrays."""
        leaves = {path: leaf for path, leaf in leaves_by_path(tree).items() if path not in pairs}
        for path, pair in pairs.items():
            leaves |= {(*path, name): each for name, each in zip(_NAMES, pair, strict=True)}
        return tree_of_leaves(leaves)

    def pairs_of(tree: Any) -> dict[Path, Any]:
        leaves = leaves_by_path(tree)
        return {path: tuple(leaves[*path, name] for name in _NAMES) for path in paths}

    def init(params: Any) -> FactorsState:
        leaves = leaves_by_path(params)
        pairs = {path: split(leaves[path]) for path in paths}
        return FactorsState(replaced({}, pairs), inner.init(replaced(params, pairs)))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if params is None:
            raise ValueError("params=None: factors need the weights")
        pairs, gradient = pairs_of(state.factors), leaves_by_path(updates)
        pulled = {path: jax.vjp(product, *pairs[path])[1](gradient[path]) for path in paths}
        whole = replaced(params, pairs)
        found: Any = inner.update(replaced(updates, pulled), state.inner, whole)
        moves, inside = found
        moved = pairs_of(moves)
        new: Any = {path: optax.apply_updates(pairs[path], moved[path]) for path in paths}
        changes = {path: leaf for path, leaf in leaves_by_path(moves).items() if path in gradient}
        old = leaves_by_path(params)
        changes |= {path: product(*new[path]) - old[path] for path in paths}
        return tree_of_leaves(changes), FactorsState(replaced({}, new), inside)

    return optax.GradientTransformation(init, update)
