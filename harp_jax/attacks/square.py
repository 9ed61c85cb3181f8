"""The Square Attack (Andriushchenko et al., 2020): random search with square windows, no gradients.

It follows AutoAttack's standard version (Croce & Hein, 2020): margin loss, and window sizes that
depend on the number of queries done, not on their total. Every example has its own windows, and
they lie anywhere in the image, as in the paper; in the published code all examples of a batch share
one, which never reaches the last row and column.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt32

from harp_jax.attacks import norms, objectives
from harp_jax.attacks.base import State, Task, check_settings
from harp_jax.attacks.inputs import check_inputs
from harp_jax.settings import check
from harp_jax.types import ExampleKeys, Images, Labels, LogitsFn, PerExample, Selection

# Numbers of queries after which the area of a window is halved.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
QUERIES = 250  # largest number of windows that one `advance` tries

_TINY = 1e-12  # lower bound of norms in divisions

_Image = Float[Array, "height width channels"]
_Bits = UInt32[Array, " n"]


class SquareState(NamedTuple):
    """State of the search, per example.

    Attributes:
        adversarial: Best points so far.
        margin: Largest wrong logit minus the label's logit; the search maximises it.
        fooled: Flags of misclassified points; their search is over.
        query: Number of windows tried so far.
    """

    adversarial: Images
    margin: PerExample
    fooled: Selection
    query: Int[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class Square:
    """Square Attack, in an L_inf or L2 ball; needs logits, not gradients.

    A query changes one window: in L_inf to a corner of the ball, in L2 by moving perturbation to it
    from a second window. The change is kept if it increases the margin, the largest wrong logit
    minus the label's logit.

    Attributes:
        epsilon: Radius of the ball, on the [0, 1] scale.
        norm: 'linf' or 'l2'.
        queries: Number of windows tried per example in one run, >= 1; the start is another query.
        restarts: Number of independent runs, >= 1.
        p_init: Fraction of the image that the first windows cover, in (0, 1].
    """

    epsilon: float
    norm: str = "linf"
    queries: int = 5000
    restarts: int = 1
    p_init: float = 0.8

    uses_gradients = False
    in_pieces = True

    def __post_init__(self):
        """Checks the settings; raises a ValueError that names the first one out of range."""
        check_settings(self, "queries", "restarts")
        check(self, "p_init", 0 < self.p_init <= 1, "numbers in (0, 1]")

    def __call__(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, key: ExampleKeys
    ) -> Images:
        """Attacks a batch; see `Attack`.

        Returns:
            The points with the largest margin, in [0, 1] and within `epsilon` of the clean images.
            Misclassified clean images are returned unchanged.
        """
        check_inputs(logits_fn, images, labels, key)
        keys = norms.per_example_keys(key, len(images))

        def run(number: Int[Array, ""] | int, best: SquareState) -> SquareState:
            run_keys = norms.fold_keys(keys, number)
            fresh = self._first(logits_fn, images, labels, run_keys)
            state = choose(best.fooled, best, fresh)
            state = self._search(state, logits_fn, images, labels, run_keys, self.queries)
            better = state.fooled | (state.margin > best.margin)
            return choose(better & ~best.fooled, state, best)

        nothing = SquareState(
            images,
            jnp.full(len(images), -jnp.inf),
            jnp.zeros(len(images), bool),
            jnp.zeros(len(images), jnp.int32),
        )
        return lax.fori_loop(0, self.restarts, run, nothing).adversarial

    def rounds(self, classes: int) -> int:
        """Returns the number of restarts."""
        del classes
        return self.restarts

    def start(self, task: Task) -> State:
        """Adds stripes (L_inf) or tiles (L2) to the images; misclassified images are done."""
        logits_fn, images, labels, keys, number = task
        return self._shared(self._first(logits_fn, images, labels, norms.fold_keys(keys, number)))

    def advance(self, task: Task, state: State) -> State:
        """Tries up to `QUERIES` more windows; the result does not depend on `QUERIES`."""
        logits_fn, images, labels, keys, number = task
        search = SquareState(
            state.adversarial, state.memory["margin"], state.done, state.memory["query"]
        )
        keys = norms.fold_keys(keys, number)
        return self._shared(self._search(search, logits_fn, images, labels, keys, QUERIES))

    def _shared(self, search: SquareState) -> State:
        return State(
            search.adversarial,
            search.fooled | (search.query >= self.queries),
            {"margin": search.margin, "query": search.query},
        )

    def _first(
        self, logits_fn: LogitsFn, images: Images, labels: Labels, keys: Key[Array, " batch"]
    ) -> SquareState:
        """Returns the state before the first window; misclassified images are unchanged."""
        shape = images.shape[1:]
        draw = functools.partial(_bits, count=_start_bits(self.norm, shape))
        bits = jax.vmap(draw, (0, None))(keys, 0)
        begin = {"linf": _stripes, "l2": _tiles}[self.norm]
        adversarial = jax.vmap(functools.partial(begin, self.epsilon))(images, bits)
        clean, margin = _margin(logits_fn, images, labels), _margin(logits_fn, adversarial, labels)
        query = jnp.zeros(len(images), jnp.int32)
        return choose(
            clean[1], SquareState(images, *clean, query), SquareState(adversarial, *margin, query)
        )

    def _search(
        self,
        state: SquareState,
        logits_fn: LogitsFn,
        images: Images,
        labels: Labels,
        keys: Key[Array, " batch"],
        queries: Int[Array, ""] | int,
    ) -> SquareState:
        """Tries up to `queries` more windows; examples may be at different query numbers.

        An example ends when it is misclassified or has used all queries of the attack; the loop
        ends when all examples have ended.
        """
        sizes = _window_sizes(self.p_init, self.norm, images.shape[1:3])
        propose = {"linf": _recolour, "l2": _move}[self.norm]
        count = {"linf": 2, "l2": 5}[self.norm] + images.shape[-1]

        def candidate(
            key: Key[Array, ""], image: _Image, best: _Image, query: Int[Array, ""]
        ) -> _Image:
            level = (query > jnp.array(HALVINGS)).sum()
            return propose(self.epsilon, sizes, image, best, level, _bits(key, query + 1, count))

        def active(state: SquareState) -> Selection:
            return ~state.fooled & (state.query < self.queries)

        def step(carry: tuple[Int[Array, ""], SquareState]) -> tuple[Int[Array, ""], SquareState]:
            done, state = carry
            tried = jax.vmap(candidate)(keys, images, state.adversarial, state.query)
            margin, fooled = _margin(logits_fn, tried, labels)
            searching = active(state)
            found = SquareState(tried, margin, fooled, state.query)
            state = choose(searching & (fooled | (margin > state.margin)), found, state)
            return done + 1, state._replace(query=state.query + searching)

        def unfinished(carry: tuple[Int[Array, ""], SquareState]) -> jax.Array:
            done, state = carry
            return (done < queries) & active(state).any()

        return lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


def _margin(logits_fn: LogitsFn, images: Images, labels: Labels) -> tuple[PerExample, Selection]:
    """Computes the margins of images and flags of misclassified ones."""
    logits = logits_fn(images)
    return objectives.margin(logits, labels), objectives.is_wrong(logits, labels)


def choose(take: Selection, new: SquareState, old: SquareState) -> SquareState:
    """Chooses between two states, per example."""
    return jax.tree.map(
        lambda a, b: jnp.where(take[:, None, None, None] if a.ndim == 4 else take, a, b), new, old
    )


def _bits(key: Key[Array, ""], query: Int[Array, ""] | int, count: int) -> _Bits:
    """Draws the random bits of one query; number 0 is the start."""
    return jax.random.bits(jax.random.fold_in(key, query), (count,))


def _signs(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(bits >> 31, 1.0, -1.0)


@functools.cache
def _window_sizes(p_init: float, norm: str, shape: tuple[int, int]) -> tuple[int, ...]:
    """Returns the sides of the windows in pixels, largest first; those of L2 are odd."""
    height, width = shape
    sides = []
    for level in range(len(HALVINGS) + 1):
        side = round(math.sqrt(p_init / 2**level * height * width))
        if norm == "l2":
            side = max(side, 3) // 2 * 2 + 1
        sides.append(min(max(side, 1), height, width))
    return tuple(sides)


def _span(first: UInt32[Array, ""], side: Int[Array, ""], length: int) -> Array:
    """Flags a random stretch of `side` positions out of `length`."""
    places = jnp.arange(length, dtype=jnp.uint32)
    first = first % (length + 1 - side).astype(jnp.uint32)
    return (places >= first) & (places < first + side.astype(jnp.uint32))


def _stripes(epsilon: float, image: _Image, bits: _Bits) -> _Image:
    """Adds vertical stripes with a random sign per column and channel."""
    _, width, channels = image.shape
    return jnp.clip(image + epsilon * _signs(bits).reshape(1, width, channels), 0.0, 1.0)


def _recolour(
    epsilon: float,
    sizes: tuple[int, ...],
    image: _Image,
    best: _Image,
    level: Int[Array, ""],
    bits: _Bits,
) -> _Image:
    """Sets a window to plus or minus epsilon, with a random sign per channel.

    The published step adds 2 * epsilon and projects, which gives the same from any point.
    """
    height, width, _ = image.shape
    side = jnp.array(sizes)[level]
    rows, columns = _span(bits[0], side, height), _span(bits[1], side, width)
    corner = jnp.clip(image + epsilon * _signs(bits[2:]).reshape(1, 1, -1), 0.0, 1.0)
    return jnp.where(rows.reshape(-1, 1, 1) & columns.reshape(1, -1, 1), corner, best)


def _start_bits(norm: str, shape: tuple[int, ...]) -> int:
    height, width, channels = shape
    if norm == "linf":
        return width * channels
    side = max(height // 5, 1)
    return (height // side) * (width // side) * (channels + 1)


@functools.cache
def _bumps(side: int) -> np.ndarray:
    """Returns the published pattern of an L2 window: two peaks of opposite signs, norm 1."""
    pattern = np.zeros((side, side), np.float32)
    for rows, sign in ((slice(side // 2), 1.0), (slice(side // 2, side), -1.0)):
        pattern[rows] = sign * _pyramid(*pattern[rows].shape)
    return pattern / np.linalg.norm(pattern)


def _pyramid(height: int, width: int) -> np.ndarray:
    """Sums nested rectangles, the k-th from the inside with the value 1/k**2; norm 1."""
    values = np.zeros((height, width))
    middle = height // 2, width // 2
    for k in range(max(middle) + 1):
        rows, columns = (slice(max(m - k, 0), m + k + 1) for m in middle)
        values[rows, columns] += 1.0 / (k + 1) ** 2
    return values / max(np.linalg.norm(values), _TINY)


def _scaled(change: _Image, norm: Float[Array, ""] | float) -> _Image:
    return change * (norm / jnp.maximum(jnp.sqrt((change**2).sum()), _TINY))


def _tiles(epsilon: float, image: _Image, bits: _Bits) -> _Image:
    """Adds tiles of the L2 pattern in random orientations, with a sign per tile and channel."""
    height, width, channels = image.shape
    side = max(height // 5, 1)
    down, across = height // side, width // side
    bits = bits.reshape(down, across, channels + 1)
    lying = jnp.tile(_bumps(side), (down, across))
    standing = jnp.tile(_bumps(side).T, (down, across))
    pixels = jnp.repeat(jnp.repeat(_signs(bits), side, 0), side, 1)
    pattern = jnp.where(pixels[..., 0] > 0, lying, standing)
    pattern = pattern[..., None] * pixels[..., 1:]
    top, left = (height - down * side) // 2, (width - across * side) // 2
    below, right = height - top - down * side, width - left - across * side
    change = jnp.pad(pattern, ((top, below), (left, right), (0, 0)))
    return jnp.clip(image + _scaled(change, epsilon), 0.0, 1.0)


@functools.cache
def _bump_table(sizes: tuple[int, ...], height: int, width: int) -> np.ndarray:
    """Returns the pattern of each size in both orientations, in the last quarter of zeros."""
    table = np.zeros((len(sizes), 2, 2 * height, 2 * width), np.float32)
    for level, side in enumerate(sizes):
        table[level, 0, height : height + side, width : width + side] = _bumps(side)
        table[level, 1, height : height + side, width : width + side] = _bumps(side).T
    return table


def _move(
    epsilon: float,
    sizes: tuple[int, ...],
    image: _Image,
    best: _Image,
    level: Int[Array, ""],
    bits: _Bits,
) -> _Image:
    """Moves the perturbation of one window to another one, in a new pattern."""
    height, width, channels = image.shape
    side = jnp.array(sizes)[level]
    rows, columns, from_rows, from_columns = (
        _span(bits[place], side, (height, width)[place % 2]) for place in range(4)
    )
    into = rows.reshape(-1, 1, 1) & columns.reshape(1, -1, 1)
    emptied = from_rows.reshape(-1, 1, 1) & from_columns.reshape(1, -1, 1)
    change = best - image
    held = jnp.where(into, change, 0.0)
    held = held / (_TINY + jnp.sqrt((held**2).sum((0, 1), keepdims=True)))
    corner = (height - rows.argmax(), width - columns.argmax())
    turned = (bits[4] >> 31).astype(jnp.int32)
    bump = lax.dynamic_slice(
        jnp.asarray(_bump_table(sizes, height, width)),
        (level, turned, *corner),
        (1, 1, height, width),
    )
    new = bump.reshape(height, width, 1) * _signs(bits[5:]).reshape(1, 1, channels) + held
    unused = jnp.maximum(epsilon**2 - (change**2).sum(), 0.0) / channels
    amount = jnp.sqrt(unused + (jnp.where(into | emptied, change, 0.0) ** 2).sum())
    new = new * (amount / (_TINY + jnp.sqrt((new**2).sum((0, 1), keepdims=True))))
    change = jnp.where(into, new, jnp.where(emptied, 0.0, change))
    return jnp.clip(image + _scaled(change, epsilon), 0.0, 1.0)
