"""The log of a run's attempts, and when a run does not resume any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from disttrain.checkpoint.files import _NAME
from disttrain.records.lifecycle.attempt_log import (
    ATTEMPTS_NAME,
    Attempt,
    ResumePolicy,
    checkpoint_step,
    log_end,
    log_start,
    read_attempts,
    why_not_again,
)

POLICY = ResumePolicy("slurm", 3600, 120, max_timeouts=2, max_preemptions=3, max_node_failures=1)


def ended(*causes: str, first_step: int = 0) -> list[Attempt]:
    """Attempts that ended so, each with some progress."""
    return [Attempt(str(number), first_step + 10 * number, 0.0, cause) for number, cause in enumerate(causes)]


def test_reads_what_was_written(tmp_path: Path) -> None:
    assert read_attempts(tmp_path) == []
    log_start(tmp_path, Attempt("7_0", 0, 1.5))
    log_end(tmp_path, "time limit", 40)
    log_start(tmp_path, Attempt("7_0", 40, 9.0))
    with (tmp_path / ATTEMPTS_NAME).open("ab") as file:
        file.write(b'{"first_step": "x"}\n[]\n{"first_st')  # a damaged line, and one that is being written
    assert read_attempts(tmp_path) == [Attempt("7_0", 0, 1.5, "time limit", 40), Attempt("7_0", 40, 9.0)]


def test_latest_checkpoint_by_its_name(tmp_path: Path) -> None:
    assert checkpoint_step(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    names = ["attempt-00001", "attempt-00001-step-000000040.json", "attempt-00002-step-000000060.json", "x.json"]
    for name in names:
        (tmp_path / "checkpoints" / name).touch()
    assert [bool(_NAME.fullmatch(name)) for name in names] == [False, True, True, False]
    assert checkpoint_step(tmp_path) == 60


@pytest.mark.parametrize(
    ("causes", "reason"),
    [
        (["time limit"] * 2, None),
        (["time limit"] * 3, "time limit number 3 after step 100, and max_timeouts is 2"),
        (["preemption", "unknown"] * 2, "preemption number 4 after step 100, and max_preemptions is 3"),
        (["node failure"], None),
        (["node failure"] * 2, "node failure number 2 after step 100, and max_node_failures is 1"),
        (["time limit", "node failure", "preemption"], None),
    ],
)
def test_budgets(causes: list[str], reason: str | None) -> None:
    assert why_not_again(ended(*causes), 100, POLICY) == reason


def test_three_attempts_without_progress_end_a_run() -> None:
    stuck = [Attempt(str(number), 40, 0.0, cause) for number, cause in enumerate(("preemption", "unknown", None))]
    reason = "3 attempts made no progress after step 40 (they ended by: preemption, unknown, unknown)"
    assert why_not_again(stuck, 40, POLICY) == reason
    assert why_not_again(stuck, 41, POLICY) is None
    assert why_not_again(stuck[:2], 40, POLICY) is None
