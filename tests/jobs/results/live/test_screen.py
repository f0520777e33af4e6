"""The screen of `sweep status --watch`: what it shows of each run, and that it always fits."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.results.live.progress import RunProgress, read_progress
from jobs.results.live.screen import View, screen, shown_runs
from jobs.results.result import Result
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from tests.jobs.results.live.test_stalls import START, step_line, write_run
from tests.jobs.results.rows import make_result

NOW_S = 1000.0


def printed(view: View, width: int = 100, height: int = 40) -> list[str]:
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=True, color_system=None, legacy_windows=False).print(
        screen(view, width, height)
    )
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def row(number: int, state: str, reason: str | None = None, **columns: Any) -> Result:
    return make_result(f"1x1-{number:012x}", f"1x1 seed={number}", state=state, reason=reason, **columns)


def view_of(
    rows: Sequence[Result],
    progress: Mapping[str, RunProgress] | None = None,
    queue: Sequence[QueuedJob] = (),
    **more: Any,
) -> View:
    listed = {job.job_id: job for job in queue}
    return View("s on site", rows, progress or {}, listed, now_s=NOW_S, **more)


def test_each_run_of_a_small_sweep() -> None:
    rows = [
        row(0, "COMPLETED", steps=400, train_loss=0.25, samples_per_s=1234.5),
        row(1, "RUNNING", "no step for 4 min (rank 3 last wrote step [119])"),
        row(2, "RUNNING"),
        row(3, "PENDING", job_id="7_3"),
        row(4, "PENDING", job_id="7_4"),
        row(5, "FAILED", "rank 0 on n[1-2]: ValueError: no data"),
        row(6, "RUNNING", dropped=True),
    ]
    progress = {
        rows[1].run_id: RunProgress("training", 120, 400, 0.5, 99.6, 3725.0),
        rows[2].run_id: RunProgress("evaluating", 120, 400, 0.5, 99.6, 3725.0),
    }
    queue = [
        QueuedJob("7_3", State.PENDING, "Priority", priority=5, start_s=int(NOW_S) + 720),
        QueuedJob("7_4", State.PENDING, "Priority", priority=9),
        QueuedJob("7_10", State.PENDING, "Priority", priority=5),
        QueuedJob("7_1", State.RUNNING, priority=99),
    ]
    lines = printed(view_of(rows, progress, queue, asked_s=NOW_S - 12, notices=["sacct is down"]))
    assert lines[0] == "s on site: 6 runs, 1 COMPLETED, 1 FAILED, 2 PENDING, 2 RUNNING"
    assert lines[1].startswith("runs ended ━━━")
    assert lines[1].endswith(" 2/6 Slurm answered 12 s ago")
    assert lines[3].split() == ["label", "state", "stage", "step", "loss", "samples/s", "time", "left"]
    assert [" ".join(line.split()) for line in lines[5:]] == [
        "1x1 seed=0 COMPLETED 400 0.2500 1234",
        "1x1 seed=1 RUNNING training 120/400 0.5000 100",
        "1x1 seed=2 RUNNING evaluating 120/400 0.5000 100 1:02:05",
        "1x1 seed=3 PENDING starts in 12 min",
        "1x1 seed=4 PENDING place 1 of 3",
        "1x1 seed=5 FAILED",
        "",
        "need attention: 1 run",
        "1x1-000000000001 (1x1 seed=1) RUNNING: no step for 4 min (rank 3 last wrote step [119])",
        "failed: 1 run",
        "1x1-000000000005 (1x1 seed=5) FAILED: rank 0 on n[1-2]: ValueError: no data",
        "note: sacct is down",
    ]


def test_jobs_of_equal_priority_wait_in_the_order_of_their_ids() -> None:
    rows = [row(number, "PENDING", job_id=f"7_{number}") for number in (10, 9)]
    queue = [QueuedJob(f"7_{number}", State.PENDING, priority=3) for number in (10, 9)]
    lines = printed(view_of(rows, queue=queue))
    assert [line.split()[-4:] for line in lines[5:7]] == [["place", "2", "of", "2"], ["place", "1", "of", "2"]]


@pytest.mark.parametrize(("width", "height"), [(110, 30), (80, 24), (40, 24), (200, 60), (80, 14)])
def test_a_large_sweep_fits_on_the_screen(width: int, height: int) -> None:
    """The counts are first, then what runs, then what failed."""
    rows = [
        *(row(number, "PENDING") for number in range(40)),
        *(row(100 + number, "RUNNING") for number in range(30)),
        *(row(200 + number, "FAILED", "rank 0: " + "e" * 200) for number in range(30)),
        *(row(300 + number, "RUNNING", "no step for 4 min") for number in range(3)),
    ]
    lines = printed(view_of(rows, notices=["n" * 300] * 9), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    names = ["103 runs", "runs ended", "running: 33 runs, the first", "need attention: 3 runs", "failed: 30 runs, the"]
    places = [text.replace("\n", "").find(name) for name in names]
    assert places == sorted(places)
    assert places[0] > 0


def test_space_that_the_table_leaves_is_for_reasons() -> None:
    rows = [row(0, "RUNNING"), *(row(100 + number, "FAILED", "rank 0: lost") for number in range(50))]
    lines = printed(view_of(rows), height=40)
    assert (len(lines), "failed: 50 runs, the first 30" in lines) == (39, True), lines


def test_only_files_of_runs_on_the_screen_are_read() -> None:
    rows = [row(0, "PENDING"), row(1, "COMPLETED"), *(row(number, "RUNNING") for number in range(2, 90))]
    assert shown_runs([*rows, row(99, "RUNNING", dropped=True)], 5) == rows[2:7]


def test_progress_by_the_files_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", {0: START + step_line(49) + step_line(50)}, NOW_S)
    progress = read_progress(run, 2)
    assert progress == RunProgress("training", 50, 200, 0.5, 160.0, 7.5)
    assert progress.share == 0.25
    assert read_progress(write_run(run, {}, NOW_S, stage="importing", steps=None), 2) == RunProgress("importing")
    begun = write_run(tmp_path / "b", {0: START}, NOW_S)
    assert read_progress(begun, 2) == RunProgress("training", steps=200)
    (run / "stage.json").write_text("{")
    assert read_progress(run, 2) == RunProgress()
    (run / "summary.json").write_text("{}")
    assert read_progress(run, 2) == RunProgress("finished")
    assert read_progress(run, 2).share == 1.0
