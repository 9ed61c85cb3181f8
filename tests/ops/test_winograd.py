"""The matrices of Winograd's form, in float64, where they are exact up to its rounding."""

import numpy as np
import pytest

from harp_jax.ops import winograd


@pytest.mark.parametrize(
    "points", [winograd.POINTS, (0.0, 1.0, -1.0, 2.0, -2.0), (3.0, 0.5, -2.0, 1.0, 0.25)]
)
def test_matrices_compute_a_correlation(points):
    b, g, a = winograd.matrices(points)
    random = np.random.default_rng(0)
    tile, taps = random.normal(size=winograd.TILE), random.normal(size=winograd.TAPS)
    values = a.T @ ((g @ taps) * (b.T @ tile))
    np.testing.assert_allclose(values, np.correlate(tile, taps, "valid"), rtol=0, atol=1e-12)


def test_two_points_must_differ():
    with pytest.raises(ValueError, match=r"points=\(0.0, 1.0, 1.0, 2.0, -2.0\)"):
        winograd.matrices((0.0, 1.0, 1.0, 2.0, -2.0))
