"""Projection onto a hyperplane within the box [0, 1]^d, in L_inf and in L2.

The FAB attack (Croce & Hein, 2020) needs the shortest displacement of a point that stays in the box
and makes an affine function zero. The function is given by its value and gradient at the point.

In either norm every coordinate moves towards the plane, by `level` (L_inf) or by
`level * |normal|` (L2), until it reaches the box. Together they change the function by the sum of
`slope * min(level, limit)`, which is concave, increasing and piecewise linear in the level. So
Newton's iteration from level 0 never passes the solution, and each step brings at least one more
coordinate to the box. It ends after a few steps with the solution of a linear equation, exact up to
rounding. It avoids sorting, which is much slower with XLA on CPUs.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from harp_jax.types import PerExample

Points = Float[Array, "batch d"]


def to_plane_linf(points: Points, normals: Points, values: PerExample) -> Points:
    """Finds the displacements, shortest in L_inf, onto planes within the box [0, 1]^d.

    Args:
        points: Points in [0, 1].
        normals: Gradients of the affine functions, at any scale.
        values: Values of the functions at `points`.

    Returns:
        Displacements. If a plane does not meet the box, they lead to the corner of the box nearest
        to the plane. Coordinates where the normal is zero do not move.
    """
    side, weights, room, gap = _towards_plane(points, normals, values)
    level = _level(weights, room, weights * room, gap)[:, None]
    return side * jnp.minimum(level, room)


def to_plane_l2(points: Points, normals: Points, values: PerExample) -> Points:
    """Finds the displacements that are shortest in L2; otherwise like `to_plane_linf`."""
    side, weights, room, gap = _towards_plane(points, normals, values)
    limits = room / jnp.where(weights > 0, weights, 1.0)
    level = _level(weights**2, limits, weights * room, gap)[:, None]
    return side * jnp.where(level < limits, level * weights, room)


def _towards_plane(
    points: Points, normals: Points, values: PerExample
) -> tuple[Points, Points, Points, PerExample]:
    """Returns directions (+-1) to the planes, |normals|, distances to the box, and |values|.

    |normals| and |values| are scaled so that the largest normal is 1, since squares of small
    gradients would vanish in float32. Coordinates with a zero normal get the distance 0.
    """
    side = jnp.where((normals > 0) == (values < 0)[:, None], 1.0, -1.0)
    largest = jnp.abs(normals).max(-1)
    scale = jnp.where(largest > 0, largest, 1.0)
    weights = jnp.abs(normals) / scale[:, None]
    room = jnp.where(weights > 0, jnp.where(side > 0, 1.0 - points, points), 0.0)
    return side, weights, room, jnp.abs(values) / scale


def _level(slopes: Points, limits: Points, heights: Points, gap: PerExample) -> PerExample:
    """Solves sum(slopes * min(level, limits)) = gap for the level; inf if there is no solution.

    Args:
        slopes: Slopes of the coordinates, >= 0.
        limits: Levels at which the coordinates reach the box, >= 0.
        heights: Products slopes * limits.
        gap: Change that is needed, >= 0.
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
