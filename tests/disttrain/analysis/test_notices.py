"""The notices in the summary of a run: problems that did not end it."""

from __future__ import annotations

import pytest

from disttrain.analysis.notices import run_notices, slow_rank_notices
from disttrain.analysis.straggler import Straggler
from disttrain.records.record_types import CheckpointRecord, StepRecord


def step(number: int, loss: float | None, examples: int = 4) -> StepRecord:
    return StepRecord(
        step=number, epoch=0, loss=loss, lr=1.0, examples=examples, data_ms=1.0, forward_ms=1.0, backward_ms=1.0,
        optimizer_ms=1.0, step_ms=4.0,
    )  # fmt: skip


def saved(number: int, error: str | None = None) -> CheckpointRecord:
    return CheckpointRecord(step=number, blocked_ms=1.0, write_s=1.0, size_bytes=None, error=error)


def test_the_first_step_without_a_finite_loss() -> None:
    """A rank without examples in a step has no loss, and nothing is wrong."""
    assert run_notices([step(1, 0.5), step(2, None, examples=0), step(3, 0.4)]) == ()
    diverged = [step(1, 0.5), step(2, None, examples=0), step(3, None), step(4, None)]
    assert run_notices(diverged) == ("the training loss is not finite from step 3 on",)


def test_checkpoints_that_could_not_be_written() -> None:
    records = [saved(10), saved(20, "Disk quota exceeded"), saved(30, "No space left on device"), saved(40)]
    assert run_notices(records) == (
        "2 checkpoints could not be written; the last one, at step 30: No space left on device",
    )
    assert run_notices([saved(10)]) == ()


@pytest.mark.parametrize(
    ("straggler", "count"), [(None, 0), (Straggler(1, 1.3, is_slow=False), 0), (Straggler(1, 1.3, is_slow=True), 1)]
)
def test_only_a_slow_rank_is_named(straggler: Straggler | None, count: int) -> None:
    """In every run one of the ranks is the slowest."""
    notices = slow_rank_notices(straggler, ("n1", "n2"))
    assert len(notices) == count
    assert all(notice.startswith("rank 1 on n2 is slow: ") for notice in notices)
