"""Student's t: the quantiles of the printed tables, and of scipy."""

from __future__ import annotations

import pytest

from jobs.analysis.student_t import interval, t_quantile


# From the table of any textbook: two-sided 95 %.
@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (120, 1.980)]
)
def test_quantile_of_the_textbook(degrees: int, quantile: float) -> None:
    assert round(t_quantile(degrees), 3) == quantile


def test_quantile_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for degrees in (*range(1, 60), 999, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_interval_by_hand() -> None:
    # Mean 3, standard deviation sqrt(2.5), 5 values: 3 +- 2.776 x 1.5811 / 2.2361.
    low, high = interval([1, 2, 3, 4, 5]) or (0, 0)
    assert (round(low, 3), round(high, 3)) == (1.037, 4.963)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_no_interval_below_three_values(values: list[float]) -> None:
    assert interval(values) is None


def test_equal_values_have_no_width() -> None:
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
