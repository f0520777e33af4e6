"""Which rank is the slowest, and when it is slow enough to be reported."""

from __future__ import annotations

import pytest

from disttrain.analysis.straggler import MIN_STEPS, Straggler, find_slowest

EVEN = [10.0] * MIN_STEPS


def slowest(*times: list[float]) -> Straggler:
    found = find_slowest(times, MIN_STEPS)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("slow_steps", "factor", "is_slow"),
    [(20, 1.5, True), (20, 1.2, False), (16, 1.5, True), (15, 1.5, False), (0, 1.0, False)],
)
def test_a_slow_rank_is_slow_in_most_steps(slow_steps: int, factor: float, is_slow: bool) -> None:
    """A rank that is slow in three of four steps may share its node with other work, or write checkpoints."""
    own = [10.0 * factor] * slow_steps + [10.0] * (MIN_STEPS - slow_steps)
    assert slowest(EVEN, own, EVEN).is_slow == is_slow


def test_one_long_step_does_not_hide_the_slow_rank() -> None:
    found = slowest([*EVEN[1:], 900.0], EVEN, [14.0] * MIN_STEPS, EVEN)
    assert (found.rank, found.ratio, found.is_slow) == (2, 1.4, True)


def test_the_fewest_steps_that_report_a_rank() -> None:
    slow = [20.0] * MIN_STEPS
    assert slowest(EVEN, slow).is_slow
    assert not slowest(EVEN[1:], slow[1:]).is_slow
