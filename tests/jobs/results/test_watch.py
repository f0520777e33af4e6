"""Waiting for a sweep: one line for every change, and no line twice."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import jobs.results.watch
from jobs.results.result import Result
from jobs.results.status import Status
from jobs.results.watch import Watch, change_line
from jobs.schedulers.shared_slurm import SharedSlurm
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.results.rows import make_result

PENDING = make_result("1x1-a", "1x1 lr=2e-05")
RUN_IDS = {"1x1-a", "2x1-b"}
OTHER = make_result("2x1-b", "2x1 lr=2e-05")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "1x1-a (1x1 lr=2e-05)  PENDING"),
        ({"state": "RUNNING", "steps": 4}, "1x1-a (1x1 lr=2e-05)  RUNNING"),
        ({"state": "COMPLETED", "samples_per_s": 12.34}, "1x1-a (1x1 lr=2e-05)  COMPLETED  12.3 samples/s"),
        (
            {"state": "COMPLETED", "samples_per_s": 12.34, "eval_accuracy": 0.5},
            "1x1-a (1x1 lr=2e-05)  COMPLETED  12.3 samples/s, accuracy 0.500",
        ),
        ({"state": "COMPLETED"}, "1x1-a (1x1 lr=2e-05)  COMPLETED"),
        ({"state": "TIMEOUT", "reason": "time limit reached"}, "1x1-a (1x1 lr=2e-05)  TIMEOUT: time limit reached"),
    ],
)  # fmt: skip
def test_change_line(changes: dict[str, Any], line: str) -> None:
    assert change_line(make_result("1x1-a", "1x1 lr=2e-05", **changes)) == line


def test_prints_every_change_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def first(**columns: Any) -> Result:
        return make_result("1x1-a", "1x1 lr=2e-05", **columns)

    done = first(state="COMPLETED", samples_per_s=9.0)
    failed = make_result("2x1-b", "2x1 lr=2e-05", state="FAILED", reason="rank 0 on n1: [lost] its data")
    answers = [
        Status((PENDING, OTHER), ()),
        Status((first(state="RUNNING", steps=1), OTHER), ("sacct is down",)),
        Status((first(state="RUNNING", steps=2), OTHER), ("sacct is down",)),
        Status((done, OTHER), ()),
        Status((done, failed), ()),
    ]
    monkeypatch.setattr(jobs.results.watch, "read_status", lambda *_: answers.pop(0))
    buffer = io.StringIO()
    slept: list[float] = []
    with Watch(SweepFolder(tmp_path), RUN_IDS, Console(file=buffer, width=40), {}, poll_s=0.0) as watch:
        watch.wait(slept.append)
    assert watch.finished
    assert (answers, len(slept)) == ([], 4)
    assert buffer.getvalue().splitlines() == [
        "1x1-a (1x1 lr=2e-05)  PENDING",
        "2x1-b (2x1 lr=2e-05)  PENDING",
        "note: sacct is down",
        "1x1-a (1x1 lr=2e-05)  RUNNING",
        "1x1-a (1x1 lr=2e-05)  COMPLETED  9.0 samples/s",
        "2x1-b (2x1 lr=2e-05)  FAILED: rank 0 on n1: [lost] its data",
    ]


def test_queries_at_most_once_per_interval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    queries: list[int] = []

    def count_query(*_: object) -> Status:
        queries.append(1)
        return Status((PENDING,), ())

    monkeypatch.setattr(jobs.results.watch, "read_status", count_query)
    with Watch(SweepFolder(tmp_path), RUN_IDS, Console(file=io.StringIO()), {}, poll_s=3600.0) as watch:
        for _ in range(5):
            watch.tick()
    assert (len(queries), watch.finished) == (1, False)


def test_with_a_shared_scheduler_news_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other commands that follow the sweep have asked: their answer does not wait for the interval."""
    scheduler = SharedSlurm({})
    news = iter([False, True, False, True])
    monkeypatch.setattr(scheduler, "has_news", lambda _: next(news))
    states = iter(["PENDING", "RUNNING", "COMPLETED"])
    asked: list[object] = []

    def answer(_folder: object, _environ: object, asked_scheduler: object) -> Status:
        asked.append(asked_scheduler)
        return Status((make_result("1x1-a", state=next(states)),), ())

    monkeypatch.setattr(jobs.results.watch, "read_status", answer)
    slept: list[float] = []
    with Watch(SweepFolder(tmp_path), {"1x1-a"}, Console(file=io.StringIO()), {}, 3600.0, scheduler) as watch:
        watch.wait(slept.append)
    assert (len(slept), asked) == (4, [scheduler] * 3)


def test_other_runs_do_not_keep_it_waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A dropped run, and runs of a submission with another --set."""
    dropped, other = (make_result(run_id, state="PENDING", dropped=run_id == "1x1-b") for run_id in ("1x1-b", "1x1-c"))
    rows = (make_result("1x1-a", state="COMPLETED"), dropped, other)
    monkeypatch.setattr(jobs.results.watch, "read_status", lambda *_: Status(rows, ()))
    buffer = io.StringIO()
    with Watch(SweepFolder(tmp_path), {"1x1-a"}, Console(file=buffer), {}, poll_s=0.0) as watch:
        watch.wait()
    assert buffer.getvalue() == "1x1-a (1x1)  COMPLETED\n"


@pytest.mark.parametrize(
    ("states", "least_polls"),
    [
        (["RUNNING", "RUNNING", "COMPLETED"], 3),  # it waits until a run has ended
        (["RUNNING"] * 20, 11),  # another job of the user may have ended
        (["COMPLETED"] * 20, 11),  # other jobs of the user have reached the limit
    ],
)
def test_waits_for_room(states: list[str], least_polls: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rest is never sent in a loop without a pause."""
    clock, queries = [0.0], iter(states)
    monkeypatch.setattr("jobs.results.watch.time.monotonic", lambda: clock[0])
    unsent = make_result("1x1-b", state="NOT_SUBMITTED")
    monkeypatch.setattr(
        jobs.results.watch, "read_status", lambda *_: Status((make_result("1x1-a", state=next(queries)), unsent), ())
    )

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    with Watch(SweepFolder(tmp_path), RUN_IDS, Console(file=io.StringIO()), {}, poll_s=0.5) as watch:
        watch.wait_for_room({"1x1-b"}, sleep)
    assert least_polls * 0.5 - 0.5 <= clock[0] <= least_polls * 0.5


def test_an_answer_from_before_a_submission_is_not_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that had failed was just sent again."""
    states = iter(["FAILED", "PENDING", "COMPLETED"])
    monkeypatch.setattr(
        jobs.results.watch, "read_status", lambda *_: Status((make_result("1x1-a", state=next(states)),), ())
    )
    clock = [0.0]
    monkeypatch.setattr("jobs.results.watch.time.monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    with Watch(SweepFolder(tmp_path), {"1x1-a"}, Console(file=io.StringIO()), {}, poll_s=5.0) as watch:
        watch.tick()
        watch.wait(sleep)
    assert next(states, None) is None


def test_runs_without_a_job_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another submission has taken them over. If no run is left, the wait is over."""
    rows = (make_result("1x1-a", state="NOT_SUBMITTED"), make_result("1x1-b", state="NOT_SUBMITTED"))
    monkeypatch.setattr(jobs.results.watch, "read_status", lambda *_: Status(rows, ()))
    with Watch(SweepFolder(tmp_path), {"1x1-a", "1x1-b"}, Console(file=io.StringIO()), {}, poll_s=0.0) as watch:
        assert not watch.finished
        assert watch.leave_out_unsent() == {"1x1-a", "1x1-b"}
        watch.wait()
