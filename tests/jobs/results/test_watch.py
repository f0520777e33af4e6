"""Waiting for a sweep: one line for every change, and no line twice."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import jobs.results.watch
from jobs.results.collect import COLUMNS, Result
from jobs.results.status import Status
from jobs.results.watch import Watch, change_line
from jobs.storage.sweep_folder import SweepFolder

BASE: dict[str, Any] = dict.fromkeys(COLUMNS) | {
    "run_id": "1x1-a", "allocation": "1x1", "model": "bert", "lr": 2e-5, "seed": 0, "world_size": 1,
}  # fmt: skip
PENDING = Result(**(BASE | {"state": "PENDING"}))
OTHER = replace(PENDING, run_id="2x1-b", model="vit")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "1x1-a  bert  PENDING"),
        ({"state": "RUNNING", "steps": 4}, "1x1-a  bert  RUNNING"),
        ({"state": "COMPLETED", "samples_per_s": 12.34}, "1x1-a  bert  COMPLETED  12.3 samples/s"),
        (
            {"state": "COMPLETED", "samples_per_s": 12.34, "eval_accuracy": 0.5},
            "1x1-a  bert  COMPLETED  12.3 samples/s, accuracy 0.500",
        ),
        ({"state": "COMPLETED"}, "1x1-a  bert  COMPLETED"),
        ({"state": "TIMEOUT", "reason": "time limit reached"}, "1x1-a  bert  TIMEOUT: time limit reached"),
    ],
)  # fmt: skip
def test_change_line(changes: dict[str, Any], line: str) -> None:
    assert change_line(replace(PENDING, **changes)) == line


def test_prints_every_change_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = replace(PENDING, state="COMPLETED", samples_per_s=9.0)
    failed = replace(OTHER, state="FAILED", reason="rank 0 on n1: [lost] its data")
    answers = [
        Status((PENDING, OTHER), ()),
        Status((replace(PENDING, state="RUNNING", steps=1), OTHER), ("sacct is down",)),
        Status((replace(PENDING, state="RUNNING", steps=2), OTHER), ("sacct is down",)),
        Status((done, OTHER), ()),
        Status((done, failed), ()),
    ]
    monkeypatch.setattr(jobs.results.watch, "read_status", lambda *_: answers.pop(0))
    buffer = io.StringIO()
    slept: list[float] = []
    with Watch(SweepFolder(tmp_path), Console(file=buffer, width=40), {}, poll_s=0.0) as watch:
        watch.wait(slept.append)
    assert watch.finished
    assert (answers, len(slept)) == ([], 4)
    assert buffer.getvalue().splitlines() == [
        "1x1-a  bert  PENDING",
        "2x1-b  vit  PENDING",
        "note: sacct is down",
        "1x1-a  bert  RUNNING",
        "1x1-a  bert  COMPLETED  9.0 samples/s",
        "2x1-b  vit  FAILED: rank 0 on n1: [lost] its data",
    ]


def test_queries_at_most_once_per_interval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    queries: list[int] = []

    def count_query(*_: object) -> Status:
        queries.append(1)
        return Status((PENDING,), ())

    monkeypatch.setattr(jobs.results.watch, "read_status", count_query)
    with Watch(SweepFolder(tmp_path), Console(file=io.StringIO()), {}, poll_s=3600.0) as watch:
        for _ in range(5):
            watch.tick()
    assert (len(queries), watch.finished) == (1, False)
