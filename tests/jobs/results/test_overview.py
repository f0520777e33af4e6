"""The status of a sweep that is larger than the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.results.overview import overview
from jobs.results.result import Result
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.rows import make_result

LAST = "sweep status --all-runs shows every run, sweep collect -o FILE writes every measurement"


def row(number: int, state: str, reason: str | None = None, **columns: Any) -> Result:
    return make_result(f"1x1-{number:012x}", f"1x1 seed={number}", state=state, reason=reason, **columns)


def lines(rows: list[Result], folder: Path, width: int | None = None, height: int = 40) -> list[str]:
    return list(overview(rows, SweepFolder(folder / "s" / "site"), "s on site", width, height))


def test_only_runs_that_a_user_asks_about_are_named(tmp_path: Path) -> None:
    rows = [
        row(0, "COMPLETED", steps=3),
        row(1, "COMPLETED", "run.json is damaged: it is empty"),
        row(2, "PENDING"),
        row(3, "PENDING", "waits (JobHeldUser)"),
        row(4, "UNKNOWN", "its job is not visible to you"),
        row(5, "NOT_SUBMITTED"),
        row(6, "TIMEOUT", "time limit of 5 min reached"),
        row(7, "RUNNING", steps=120),
        row(8, "CONFIGURING"),
        row(9, "FAILED", "dropped", dropped=True),
    ]
    assert lines(rows, tmp_path) == [
        "s on site: 9 runs, 2 COMPLETED, 1 CONFIGURING, 1 NOT_SUBMITTED, 2 PENDING, 1 RUNNING, 1 TIMEOUT, 1 UNKNOWN",
        "dropped: 1 run no longer in the sweep file; sweep forget removes them",
        "need attention: 4 runs",
        "  1x1-000000000001 (1x1 seed=1)  COMPLETED: run.json is damaged: it is empty",
        "  1x1-000000000003 (1x1 seed=3)  PENDING: waits (JobHeldUser)",
        "  1x1-000000000004 (1x1 seed=4)  UNKNOWN: its job is not visible to you",
        "  1x1-000000000005 (1x1 seed=5)  NOT_SUBMITTED",
        "failed: 1 run",
        "  1x1-000000000006 (1x1 seed=6)  TIMEOUT: time limit of 5 min reached",
        "running: 2 runs",
        "  1x1-000000000007 (1x1 seed=7)  RUNNING, step 120",
        "  1x1-000000000008 (1x1 seed=8)  CONFIGURING, step 0",
        LAST,
    ]


@pytest.mark.parametrize(("width", "height"), [(None, 40), (80, 24), (200, 60), (80, 8)])
def test_the_lines_fit_on_the_screen(width: int | None, height: int, tmp_path: Path) -> None:
    """The lines that a narrow terminal wraps count as often as it does; a line is left for the prompt."""
    rows = [
        *(row(number, "PENDING", "waits (JobHeldUser): it is held") for number in range(30)),
        *(row(100 + number, "FAILED", "rank 0: " + "e" * 200) for number in range(30)),
        *(row(200 + number, "RUNNING") for number in range(30)),
    ]
    printed = lines(rows, tmp_path, width, height)
    assert sum(-(-len(line) // (width or 10_000)) for line in printed) < height
    assert [line.partition(":")[0] for line in printed if not line.startswith(" ")] == [
        "s on site", "need attention", "failed", "running", LAST,
    ]  # fmt: skip


def test_space_that_a_section_does_not_need_is_left_to_the_next(tmp_path: Path) -> None:
    rows = [row(0, "FAILED", "x"), *(row(number, "RUNNING") for number in range(1, 50))]
    printed = lines(rows, tmp_path)
    assert len(printed) == 39
    assert "running: 49 runs, the first 34" in printed
