"""When a run is saved: by steps, by the clock, or by a share of the time, the first checkpoint included."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disttrain.checkpoint.schedule import SaveSchedule
from disttrain.config.cadence import Cadence, parse_cadence

COPY_S = 0.01


def simulate(
    cadence: Cadence,
    *,
    step_s: float,
    cost_s: float,
    steps: int,
    slow_first_s: float = 0.0,
    pause: tuple[int, float] = (0, 0.0),
    slower_from: int | None = None,
) -> list[float]:
    """The times, since the first step, at which a run is saved.

    A checkpoint is written during the following steps in `cost_s`, and a save waits for the previous write.

    Args:
        cadence: How often to save.
        step_s: The time of a step.
        cost_s: The time of a write.
        steps: The number of steps.
        slow_first_s: The additional time of the first step.
        pause: A step, and the time of the pause after it.
        slower_from: The first of the steps that take four times as long.
    """
    schedule = SaveSchedule(cadence, on_gpu=False)
    saves: list[float] = []
    now_s, written_s, noted = 100.0, 100.0, True
    due, save = schedule.begin(0, now_s, size_bytes=200_000_000)  # estimated cost: 0.5 s
    for step in range(1, steps + 1):
        slower = slower_from is not None and step >= slower_from
        now_s += step_s * (4 if slower else 1) + (slow_first_s if step == 1 else 0.0)
        now_s += pause[1] if step == pause[0] else 0.0
        if step != due:
            continue
        if not noted and written_s <= now_s:
            schedule.note_cost(cost_s)
            noted = True
        if save:
            now_s = max(now_s, written_s) + COPY_S
            saves.append(now_s - 100.0)
            written_s, noted = now_s + cost_s, False
        in_steps, save = schedule.next(step, now_s, saved=save)
        due = step + in_steps
    return saves


def gaps(saves: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(saves)]


def test_by_steps() -> None:
    assert simulate(parse_cadence(10), step_s=1.0, cost_s=0.0, steps=35) == pytest.approx([10.0, 20.0, 30.0], abs=0.1)


@pytest.mark.parametrize("slow_first_s", [0.0, 30.0])
def test_by_seconds(slow_first_s: float) -> None:
    saves = simulate(parse_cadence("60s"), step_s=0.5, cost_s=0.0, steps=500, slow_first_s=slow_first_s)
    assert len(saves) == 4
    assert all(60 <= gap <= 61 for gap in gaps([0.0, *saves])), "not early, and at most two steps late"


def test_the_first_checkpoint_waits_for_its_share() -> None:
    assert simulate(parse_cadence("1%"), step_s=0.5, cost_s=0.5, steps=320) == pytest.approx(
        [50.0, 100.0, 150.0], abs=1.5
    )


def test_an_expensive_first_checkpoint_delays_the_next() -> None:
    saves = simulate(parse_cadence("1%"), step_s=0.5, cost_s=5.0, steps=3000)
    assert saves[0] == pytest.approx(50.0, abs=1.5)
    assert saves[1] == pytest.approx(1000.0, abs=10.0)


def test_unused_time_causes_no_quick_saves() -> None:
    cheap = simulate(parse_cadence("1%"), step_s=0.1, cost_s=0.05, steps=3000)
    assert min(gaps(cheap)) > 4.9
    evaluated = simulate(parse_cadence("1%"), step_s=0.1, cost_s=0.5, steps=9000, pause=(2000, 600.0))
    assert min(gaps(evaluated)) > 49
    between = simulate(parse_cadence("600s"), step_s=0.1, cost_s=0.5, steps=30_000, pause=(7_000, 300.0))
    assert min(gaps(between)) > 599


def test_slow_steps_do_not_delay_the_first_checkpoint() -> None:
    assert simulate(parse_cadence("600s"), step_s=300.0, cost_s=0.5, steps=8)[0] <= 900.1


def test_slower_steps_do_not_make_checkpoints_rare() -> None:
    saves = simulate(parse_cadence("600s"), step_s=0.1, cost_s=0.5, steps=220_000, slower_from=180_000)
    assert max(gaps(saves)[1:-1]) < 1000
    assert sum(gap > 620 for gap in gaps(saves)) <= 1, "the interval in which the steps became slower"


@settings(deadline=None)  # an example takes about 10 ms, but more on a busy machine
@given(
    step_s=st.floats(0.01, 10.0),
    cost_s=st.floats(0.001, 0.5),
    slow_first_s=st.floats(0.0, 60.0),
)
def test_saves_stay_within_their_share(step_s: float, cost_s: float, slow_first_s: float) -> None:
    """The share is never exceeded if a checkpoint costs no more than estimated."""
    steps = int(300 / step_s)
    saves = simulate(parse_cadence("1%"), step_s=step_s, cost_s=cost_s, steps=steps, slow_first_s=slow_first_s)
    assert saves, "there was time for one"
    for number, at_s in enumerate(saves, start=1):
        # The tolerance: one step, and 5 % because a wait is planned with steps that a copy may have made longer.
        assert number * cost_s <= 0.01 * (at_s + step_s) * 1.05
    # A save happens only at the end of a step, so each gap may be a few steps longer.
    assert all(gap <= max(50.0, cost_s / 0.01) * 1.05 + 3 * step_s for gap in gaps(saves))
