"""Projection onto a hyperplane within the box [0, 1]^d, in L_inf and in L2.

The problem of the FAB attack (Croce & Hein, 2020): the shortest displacement of a point with which
it stays in the box and an affine function, given by its value and gradient there, becomes zero.

In either norm every coordinate moves towards the plane, by `level` (L_inf) or by
`level * |normal|` (L2), until it hits the box. Together they bring the function nearer to zero by
the sum of `slope * min(level, limit)`, which is concave, increasing and piecewise linear in the
level: Newton's iteration from level 0 never passes the solution, leaves at least one more
coordinate at the box in every step, and so ends after a few passes with the solution of a linear
equation, exact up to rounding. Nothing is sorted, which takes XLA far longer on CPUs.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from harp_jax.types import PerExample

Points = Float[Array, "batch d"]


def to_plane_linf(points: Points, normals: Points, values: PerExample) -> Points:
    """Displacements, shortest in L_inf, that bring points onto their planes within [0, 1]^d.

    Args:
        points: In [0, 1].
        normals: Gradients of the affine functions, of any scale.
        values: The functions' values at `points`.

    Returns:
        Displacements. Where a plane does not meet the box they lead to its corner nearest to the
        plane; coordinates with a zero in the normal do not move.
    """
    side, weights, room, gap = _towards_plane(points, normals, values)
    level = _level(weights, room, weights * room, gap)[:, None]
    return side * jnp.minimum(level, room)


def to_plane_l2(points: Points, normals: Points, values: PerExample) -> Points:
    """Displacements, shortest in L2; otherwise as `to_plane_linf`."""
    side, weights, room, gap = _towards_plane(points, normals, values)
    limits = room / jnp.where(weights > 0, weights, 1.0)
    level = _level(weights**2, limits, weights * room, gap)[:, None]
    return side * jnp.where(level < limits, level * weights, room)


def _towards_plane(
    points: Points, normals: Points, values: PerExample
) -> tuple[Points, Points, Points, PerExample]:
    """The sides (+-1) nearer to the planes, |normals|, the room up to the box there, |values|.

    The last and `normals` are scaled to a largest weight of 1: the squares of small gradients
    would vanish in float32. A coordinate that does not count has no room.
    """
    side = jnp.where((normals > 0) == (values < 0)[:, None], 1.0, -1.0)
    largest = jnp.abs(normals).max(-1)
    scale = jnp.where(largest > 0, largest, 1.0)
    weights = jnp.abs(normals) / scale[:, None]
    room = jnp.where(weights > 0, jnp.where(side > 0, 1.0 - points, points), 0.0)
    return side, weights, room, jnp.abs(values) / scale


def _level(slopes: Points, limits: Points, heights: Points, gap: PerExample) -> PerExample:
    """The level with sum(slopes * min(level, limits)) = gap, infinite where none is enough.

    Args:
        slopes: >= 0.
        limits: >= 0.
        heights: Slopes * limits.
        gap: >= 0.
    """

    def newton(state):
        level, _ = state
        active = level[:, None] < limits
        slope = jnp.where(active, slopes, 0.0).sum(-1)
        rest = gap - jnp.where(active, 0.0, heights).sum(-1)
        at_the_corner = jnp.where(rest > 0, jnp.inf, level)
        root = jnp.where(slope > 0, rest / jnp.where(slope > 0, slope, 1.0), at_the_corner)
        return jnp.maximum(level, root), (root > level).any()

    return lax.while_loop(lambda state: state[1], newton, (jnp.zeros_like(gap), jnp.array(True)))[0]
