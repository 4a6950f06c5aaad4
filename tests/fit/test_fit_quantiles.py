"""Quantiles without scipy are those of scipy."""

import pytest
from scipy.special import fdtrc, ndtri, stdtrit

from flopsfit_ds.fit.quantiles import f_tail_of_two, normal_quantile, student_quantile


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 235, 9996])
def test_students_quantiles_at_all_degrees_of_freedom(degrees: int):
    for probability in (0.3, 0.5, 0.55, 0.9, 0.95, 0.995, 0.9995):
        assert student_quantile(degrees, probability) == pytest.approx(
            stdtrit(degrees, probability), rel=1e-10, abs=1e-12
        )


def test_the_normals_quantiles_and_the_tail_of_f():
    for probability in (0.001, 0.3, 0.95, 0.9995):
        assert normal_quantile(probability) == pytest.approx(ndtri(probability), rel=1e-12)
    for spare, ratio in ((1, 0.3), (30, 2.2), (9990, 14.0)):
        assert f_tail_of_two(spare, ratio) == pytest.approx(fdtrc(2, spare, ratio), rel=1e-10)
