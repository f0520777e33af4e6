"""Scripts that run: how far they have come by what they log, and when one counts as stalled."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.results.live.progress import RunProgress, read_progress
from jobs.results.live.screen import View
from jobs.results.live.stalls import read_stall
from jobs.results.overview import overview
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.live.test_screen import printed
from tests.jobs.results.live.test_stalls import NOW_S, write_run
from tests.jobs.results.rows import make_result
from tests.jobs.script_runs import log


def running(folder: Path) -> Path:
    """The folder of a script that has run for an hour."""
    return write_run(folder, {}, NOW_S, stage="running", since_s=NOW_S - 3600, steps=None)


def test_progress_by_what_it_logs(tmp_path: Path) -> None:
    run = running(tmp_path / "a")
    assert read_progress(run, 2) == RunProgress("running")
    log(run, [{"step": 1, "loss": 9.0}], rank=1)
    log(run, [], rank=0)
    assert read_progress(run, 2) == RunProgress("running", 1, loss=9.0)
    log(run, [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25, "samples_per_s": 99}, {"eval/loss": 0.5}], rank=0)
    assert read_progress(run, 2) == RunProgress("running", 20, None, 0.25, 99.0)
    assert read_progress(run, 2).share == 0.0
    log(run, [{"note": "no number", "acc": 0.5}], rank=0)
    assert read_progress(run, 2) == RunProgress("running", 1, loss=9.0), "the first rank has begun a new attempt"


def silent(folder: Path, lines: list[dict[str, Any]], silent_s: float, rank: int = 0) -> Path:
    path = log(running(folder), lines, rank)
    os.utime(path, (NOW_S - silent_s, NOW_S - silent_s))
    return folder


STEPS = [{"step": 10 * number, "loss": 0.5} for number in range(1, 101)]  # one in half a minute


@pytest.mark.parametrize(
    ("lines", "silent_s", "line"),
    [
        (STEPS, 590, None),
        (STEPS, 610, "no metrics for 10 min (last logged step 1000)"),
        (STEPS[:10], 1800, "no metrics for 30 min (last logged step 100)"),  # one in 3 minutes
        (STEPS[:10], 1500, None),
        (STEPS[:2], 3000, None),  # the interval is not known
        ([{"loss": 0.5}] * 100, 3000, None),
        ([], 3000, None),
    ],
)
def test_silence_of_a_script(lines: list[dict[str, Any]], silent_s: float, line: str | None, tmp_path: Path) -> None:
    run = silent(tmp_path, lines, silent_s)
    assert read_stall(run, 2, None, NOW_S) == line
    assert read_stall(run, 2, NOW_S - 60, NOW_S) is None, "the files are of an earlier attempt"
    silent(tmp_path, [{"loss": 1.0}], 0, rank=1)
    assert read_stall(run, 2, None, NOW_S) is None, "another rank still logs"


def script_row(state: str, number: int, **columns: Any) -> Any:
    row = make_result(f"1x1-{number:012x}", f"1x1 lr={number}", state=state, **columns)
    return dataclasses.replace(row, is_command=True)


def test_the_screen_and_the_overview(tmp_path: Path) -> None:
    rows = [
        script_row("COMPLETED", 0, steps=40, metrics={"loss": {"last": 0.125}}, samples_per_s=50.0),
        script_row("COMPLETED", 1, steps=0, metrics={}),
        script_row("RUNNING", 2, steps=20),
        script_row("RUNNING", 3, steps=0),
    ]
    progress = {rows[2].run_id: RunProgress("running", 20, loss=0.5), rows[3].run_id: RunProgress("running")}
    lines = [" ".join(line.split()) for line in printed(View("s on site", rows, progress))]
    assert lines[5:9] == [
        "1x1 lr=0 COMPLETED 40 0.1250 50",
        "1x1 lr=1 COMPLETED",
        "1x1 lr=2 RUNNING running 20 0.5000",
        "1x1 lr=3 RUNNING running",
    ]
    shown = list(overview(rows, SweepFolder(tmp_path), "s on site", 100, 20))
    assert shown[2:4] == [f"  {rows[2].name}  RUNNING, step 20", f"  {rows[3].name}  RUNNING"]
