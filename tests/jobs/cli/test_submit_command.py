"""sweep submit: what it passes on to the queue, and its exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.cli.submit_command import _send_rest
from jobs.planning.plan import Plan
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import Admitted
from tests.jobs.command import Sweep
from tests.jobs.sweeping import train_config

pytestmark = pytest.mark.process


@pytest.fixture
def queues(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The --max-parallel of each local queue; the runs of a queue end, as FAILED if their weight_decay is 0."""
    sent: list[int | None] = []

    def send(plan: Plan, overrides: Mapping[str, str], max_ranks: int | None, *_: object, **__: object) -> None:
        sent.append(max_ranks)
        folder, jobs = SweepFolder(plan.folder), {run.run_id: f"local-{run.run_id}" for run in plan.runs}
        ledger.intend(folder.path, list(jobs), 1.0, overrides)
        ledger.record(folder.path, jobs, 1.0)
        states = [State.COMPLETED if train_config(run).weight_decay else State.FAILED for run in plan.runs]
        for run in plan.runs:
            (folder.run(run.run_id) / "summary.json").write_text('{"steps": 3}')
        rows = [AccountingRow(job, state=state, submit_s=1) for job, state in zip(jobs.values(), states, strict=True)]
        ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in rows])

    monkeypatch.setattr("jobs.schedulers.local_scheduler.send_to_local", send)
    return sent


def test_submit_passes_the_ranks_of_the_queue_on(sweep: Sweep, queues: list[int | None]) -> None:
    for options in (["--max-parallel", "3"], ["--max-parallel", "2", "--wait", "lr=1e-3"], ["lr=1e-4"]):
        assert sweep("submit", "s.yaml", "--cluster", "local", *options).exit_code == 0
    assert queues == [3, 2, None]


def test_wait_reports_the_runs_of_this_submission(sweep: Sweep, queues: list[int | None]) -> None:
    """An earlier submission with other overrides may have failed."""
    submit = ["submit", "s.yaml", "--cluster", "local", "--wait", "--poll", "0.1"]
    assert sweep(*submit, "weight_decay=0").exit_code == 1
    assert sweep(*submit).exit_code == 0
    assert len(queues) == 2
    assert sweep("status", "--check").exit_code == 1


@pytest.mark.parametrize(
    ("answers", "attempts", "never_sent"),
    [
        ([{"b"}, set()], 2, set()),
        ([UserError("busy"), {"a", "b"}, OSError("away"), set()], 4, set()),
        ([None], 1, {"a", "b"}),  # another submission has changed the sweep
        ([UserError("busy")] * 20, 10, {"a", "b"}),
    ],
)
def test_what_did_not_fit_is_sent_later(
    answers: list[Any], attempts: int, never_sent: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is tried again, with a pause; after ten in a row, the runs that were sent are still awaited."""
    asked: list[frozenset[str]] = []

    def launch_rest(_plan: Any, _sweep: Any, unsent: frozenset[str], _gate: Any) -> frozenset[str] | None:
        asked.append(unsent)
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return None if answer is None else frozenset(answer)

    monkeypatch.setattr("jobs.submission.launch.launch_rest", launch_rest)
    paused: list[float] = []
    monkeypatch.setattr("jobs.cli.submit_command.time.sleep", paused.append)
    watch: Any = SimpleNamespace(
        wait_for_room=lambda _: None, say=lambda _: None, leave_out_unsent=lambda: frozenset({"a", "b"})
    )
    nothing: Any = None
    assert _send_rest(nothing, nothing, frozenset({"a", "b"}), watch, 7.0, Admitted) == never_sent
    assert len(asked) == attempts
    errors = sum(isinstance(answer, Exception) for answer in answers[:attempts])
    assert paused == [7.0] * min(errors, 9)
