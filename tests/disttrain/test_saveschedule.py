"""When a run is saved: by steps, by the clock, or by a share of the time that holds from the first checkpoint on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disttrain.config import Cadence, parse_cadence
from disttrain.saveschedule import SaveSchedule


def simulate(
    cadence: Cadence, *, step_s: float, cost_s: float, steps: int, slow_first_s: float = 0.0, written_after: int = 1
) -> list[float]:
    """The times, since the first step, at which a run is saved; each checkpoint's cost is known some looks later."""
    schedule = SaveSchedule(cadence, on_gpu=False)
    saves: list[float] = []
    now_s, step = 100.0, 0
    in_steps, save = schedule.begin(now_s)
    looks_since = 0
    while step + in_steps <= steps:
        now_s += in_steps * step_s + (slow_first_s if step == 0 else 0.0)
        step += in_steps
        looks_since += 1
        if saves and looks_since >= written_after:
            schedule.note_cost(cost_s)
        if save:
            saves.append(now_s - 100.0)
            looks_since = 0
            now_s += cost_s
        in_steps, save = schedule.next(step, now_s, saved=save, size_bytes=200_000_000)  # which is taken to cost 0.5 s
    return saves


def test_by_steps() -> None:
    assert simulate(parse_cadence(10), step_s=1.0, cost_s=0.0, steps=35) == [10.0, 20.0, 30.0]


@pytest.mark.parametrize("slow_first_s", [0.0, 30.0])
def test_by_seconds(slow_first_s: float) -> None:
    saves = simulate(parse_cadence("60s"), step_s=0.5, cost_s=0.0, steps=500, slow_first_s=slow_first_s)
    assert saves == pytest.approx([60.0, 120.0, 180.0, 240.0], abs=0.5)


def test_a_share_waits_until_the_first_checkpoint_fits_into_it() -> None:
    assert simulate(parse_cadence("1%"), step_s=0.5, cost_s=0.5, steps=320) == pytest.approx(
        [50.0, 100.0, 150.0], abs=1.5
    )


def test_a_first_checkpoint_that_costs_more_than_was_thought_is_made_up_for() -> None:
    saves = simulate(parse_cadence("1%"), step_s=0.5, cost_s=5.0, steps=3000)
    assert saves[0] == pytest.approx(50.0, abs=1.5)
    assert saves[1] == pytest.approx(1000.0, abs=10.0)


@given(
    step_s=st.floats(0.001, 10.0),
    cost_s=st.floats(0.001, 0.5),
    slow_first_s=st.floats(0.0, 60.0),
    written_after=st.integers(1, 4),
)
def test_a_share_is_never_exceeded_where_a_checkpoint_costs_no_more_than_was_thought(
    step_s: float, cost_s: float, slow_first_s: float, written_after: int
) -> None:
    saves = simulate(
        parse_cadence("1%"),
        step_s=step_s,
        cost_s=cost_s,
        steps=int(400 / step_s),
        slow_first_s=slow_first_s,
        written_after=written_after,
    )
    for number, at_s in enumerate(saves, start=1):
        # To a step, and to what the last checkpoint made the steps before seem longer.
        assert number * cost_s <= 0.01 * (at_s + cost_s + step_s) * 1.02
