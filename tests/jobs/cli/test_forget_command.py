"""sweep forget: what it removes, what it refuses, and its question."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import SWEEP, Output, Sweep, Terminal, note

pytestmark = pytest.mark.process


def test_forget_removes_a_dropped_run(sweep: Sweep, submitted: SweepFolder, dropped: str, tmp_path: Path) -> None:
    logs = submitted.logs / "local-1-1"
    logs.mkdir()
    message = "runs that have not ended cannot be removed"
    hint = "wait until they end, or end them with sweep cancel; nothing was removed"
    for command in (["forget", "--yes"], ["forget", "2x1", "--yes", "--sweep", "s.yaml"]):
        assert sweep(*command) == Output(2, "", f"error: {message}: {dropped} (2x1) RUNNING ({hint})\n")
    note(submitted, State.COMPLETED, State.FAILED)
    asks = "sweep forget asks before it removes runs, and stdin is not a terminal (add --yes)"
    assert sweep("forget") == Output(2, "", f"error: {asks}\n")
    assert (submitted.run(dropped).exists(), logs.exists()) == (True, True)
    assert sweep("forget", "--yes") == Output(0, "removed 1 run\n", "")
    assert (submitted.run(dropped).exists(), logs.exists()) == (False, False)
    (kept,) = (run["run_id"] for run in submitted.planned_runs())
    nothing = "nothing to forget: no run of s on local is dropped\n"
    assert sweep("forget", "--yes") == Output(0, nothing, "")
    assert (submitted.path / "by-name" / "1x1").exists()
    # The file has the allocation again. The accounting still has the forgotten job, and the ledger does not.
    (tmp_path / "s.yaml").write_text(SWEEP)
    again = sweep("submit", "s.yaml", "--cluster", "local").out.splitlines()[0]
    assert again == "s on local: submitting 1 of 2 runs (1 done, 0 queued or running)"
    rows = json.loads(sweep("status", "--json").out)["runs"]
    assert [(row["run_id"], row["state"]) for row in rows] == [(kept, "COMPLETED"), (dropped, "NOT_SUBMITTED")]


def test_forget_removes_a_named_run(sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is still in the sweep file, and the question says so."""
    note(submitted, State.FAILED, State.COMPLETED)
    named = submitted.planned_runs()[0]["run_id"]
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    output = sweep("forget", "1x1")
    assert output.out.splitlines()[0] == f"{named} (1x1)  FAILED  (in the sweep file: sweep submit runs it again)"
    assert [run["allocation"] for run in submitted.planned_runs()] == ["2x1"]


def test_forget_refuses_an_interrupted_submission(sweep: Sweep, submitted: SweepFolder) -> None:
    """Its jobs may exist, although the ledger has none."""
    note(submitted, State.FAILED, State.COMPLETED)
    named = submitted.planned_runs()[0]["run_id"]
    ledger.intend(submitted.path, [named], 2.0)
    refused = sweep("forget", named, "--yes")
    assert refused.exit_code == 2
    assert f"{named} (1x1) in an interrupted submission" in refused.err
    assert submitted.run(named).exists()
    # A submission removes the summary of a run that it sends: this one is of the job that the ledger lacks.
    (submitted.run(named) / "summary.json").write_text('{"steps": 3}')
    assert sweep("forget", named, "--yes").out == "removed 1 run\n"
    assert not submitted.run(named).exists()


def test_forget_asks_first(sweep: Sweep, submitted: SweepFolder, dropped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    note(submitted, State.COMPLETED, State.FAILED)
    question = "Remove these runs, with their records, checkpoints and logs? [y/N]: "
    for answer, last_line, is_left in (("n", "nothing was removed", True), ("y", "removed 1 run", False)):
        monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
        assert sweep("forget") == Output(0, f"{dropped} (2x1)  FAILED\n{question}{last_line}\n", "")
        assert submitted.run(dropped).exists() is is_left


def test_a_run_submitted_during_the_question_stays(
    sweep: Sweep, submitted: SweepFolder, dropped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has it again in the meantime, so it is no longer dropped."""
    note(submitted, State.COMPLETED, State.FAILED)

    class Slow(Terminal):
        def readline(self, *_: object) -> str:  # type: ignore[override]
            runs = [{**run, "dropped": False} for run in submitted.planned_runs()]
            submitted.write_plan({"runs": runs})
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Slow())
    output = sweep("forget")
    assert (output.exit_code, output.err) == (
        2, "error: the runs have changed since the question; nothing was removed (try again)\n"
    )  # fmt: skip
    assert submitted.run(dropped).exists()


def test_without_slurms_answer_nothing_is_forgotten(sweep: Sweep, submitted: SweepFolder, dropped: str) -> None:
    """The last answer of sacct says FAILED, but the run may have been sent again from another folder."""
    note(submitted, State.COMPLETED, State.FAILED)
    submitted.write_plan({**json.loads(submitted.plan_file.read_text()), "kind": "slurm"})
    output = sweep("forget", dropped, "--yes", "--sweep", "s")
    error = "error: without an answer of sacct, jobs may still be running; nothing was removed (try again)\n"
    assert (output.exit_code, output.err.endswith(error)) == (2, True)
    assert submitted.run(dropped).exists()


def test_another_user_forgets_nothing(
    sweep: Sweep, submitted: SweepFolder, dropped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(submitted, State.COMPLETED, State.FAILED)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    error = f"error: {str(submitted.path)!r} belongs to another user (only its owner can remove runs)\n"
    assert sweep("forget", "--yes") == Output(2, "", error)
    assert submitted.run(dropped).exists()
