import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from harp_jax.attacks import projections

to_plane = {
    "linf": jax.jit(projections.to_plane_linf),
    "l2": jax.jit(projections.to_plane_l2),
}
both_norms = pytest.mark.parametrize("norm", to_plane)


def length(displacement, norm):
    return np.linalg.norm(displacement, np.inf if norm == "linf" else 2, axis=-1)


def cases(seed, number=60, d=7):
    """Points in and on the box, normals with zeros, planes inside, through a point and outside."""
    rng = np.random.default_rng(seed)
    points = np.clip(rng.uniform(-0.4, 1.4, (number, d)), 0, 1)
    normals = rng.normal(size=(number, d)) ** 3 * rng.integers(0, 2, (number, d))
    normals[:, 0] += 0.1  # no normal is zero all over
    # The function's value at a point is what a share of the way to the farthest corner changes.
    sides = np.sign(normals) * rng.choice([-1, 1], number)[:, None]
    room = np.where(sides > 0, 1 - points, points) * (sides != 0)
    shares = rng.choice([0, 0.01, 0.2, 0.6, 0.95, 1.5], number)
    values = -shares * (normals * sides * room).sum(-1)
    points, normals, values = np.float32(points), np.float32(normals), np.float32(values)
    return points, normals, values, shares


def shortest_linf(point, normal, value):
    """Least t with |delta| <= t: a linear programme in (delta, t)."""
    d = len(point)
    column = np.full((d, 1), -1.0)
    best = optimize.linprog(
        np.append(np.zeros(d), 1.0),
        A_ub=np.block([[np.eye(d), column], [-np.eye(d), column]]),
        b_ub=np.zeros(2 * d),
        A_eq=np.append(normal, 0.0)[None],
        b_eq=[-value],
        bounds=[*zip(-point, 1 - point, strict=True), (0, None)],
    )
    assert best.success
    return best.fun


def shortest_l2(point, normal, value):
    best = optimize.minimize(
        lambda delta: delta @ delta / 2,
        np.zeros(len(point)),
        jac=lambda delta: delta,
        bounds=list(zip(-point, 1 - point, strict=True)),
        constraints={"type": "eq", "fun": lambda x: normal @ x + value, "jac": lambda x: normal},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert best.success
    return np.linalg.norm(best.x)


@both_norms
def test_is_as_short_as_the_solution_of_a_general_solver(norm):
    points, normals, values, shares = cases(seed=0)
    found = np.asarray(to_plane[norm](points, normals, values), np.float64)
    solver = {"linf": shortest_linf, "l2": shortest_l2}[norm]
    inside = shares < 1
    assert inside.sum() > 30
    expected = [
        solver(*map(np.float64, case))
        for case in zip(points[inside], normals[inside], values[inside], strict=True)
    ]
    # SLSQP itself is good to about the square root of its tolerance.
    np.testing.assert_allclose(length(found[inside], norm), expected, rtol=2e-5, atol=2e-6)


@both_norms
def test_ends_on_the_plane_and_in_the_box(norm):
    points, normals, values, shares = cases(seed=1, number=400, d=50)
    found = np.asarray(to_plane[norm](points, normals, values), np.float64)
    reached = points + found
    assert reached.min() >= -1e-7
    assert reached.max() <= 1 + 1e-7
    distance = values + (normals * found).sum(-1)
    scale = np.abs(normals).sum(-1)
    assert np.abs(distance / scale)[shares < 1].max() < 1e-6
    assert (found[normals == 0] == 0).all()
    assert (found[shares == 0] == 0).all()


@both_norms
def test_ends_in_the_nearest_corner_where_the_plane_does_not_meet_the_box(norm):
    points, normals, values, shares = cases(seed=2)
    outside = shares > 1
    assert outside.sum() > 3
    reached = points + np.asarray(to_plane[norm](points, normals, values))
    corner = np.where((normals > 0) == (values < 0)[:, None], 1.0, 0.0)
    corner = np.where(normals == 0, points, corner)
    np.testing.assert_allclose(reached[outside], corner[outside], atol=1e-7)


@both_norms
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_scale_of_the_function_does_not_matter(norm, scale):
    points, normals, values, _ = cases(seed=3)
    scale = np.float32(scale)
    found = to_plane[norm](points, normals, values)
    np.testing.assert_allclose(
        to_plane[norm](points, normals * scale, values * scale), found, rtol=1e-4, atol=1e-6
    )


@both_norms
def test_stays_where_the_function_is_constant(norm):
    points = np.float32([[0.0, 0.3, 1.0]] * 3)
    values = np.float32([-1.0, 0.0, 1.0])
    assert not to_plane[norm](points, jnp.zeros((3, 3)), values).any()


@both_norms
def test_known_displacements(norm):
    points = np.float32([[0.5, 0.5], [0.9, 0.5], [0.0, 0.5]])
    normals = np.float32([[3, 1], [2, 1], [1, -1]])
    values = np.float32([-0.4, -0.6, -0.2])
    expected = {
        "linf": [[0.1, 0.1], [0.1, 0.4], [0.1, -0.1]],
        # The second would be (0.24, 0.12), were it not for the box.
        "l2": [[0.12, 0.04], [0.1, 0.4], [0.1, -0.1]],
    }
    np.testing.assert_allclose(to_plane[norm](points, normals, values), expected[norm], atol=1e-6)


@both_norms
def test_a_point_does_not_feel_its_neighbours(norm):
    points, normals, values, _ = cases(seed=4)
    whole = np.asarray(to_plane[norm](points, normals, values))
    single = to_plane[norm](points[7:8], normals[7:8], values[7:8])
    np.testing.assert_allclose(whole[7:8], single, rtol=1e-6, atol=1e-7)
