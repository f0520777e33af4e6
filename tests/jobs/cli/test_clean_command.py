"""sweep clean: what it lists, what it removes, and its question."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from jobs.slurm.states import State
from jobs.storage.ledger import submission_lock
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Output, Sweep, Terminal, note

pytestmark = pytest.mark.process


def fill(folder: SweepFolder, *states: State) -> list[Path]:
    """Gives each run a checkpoint of 2 KiB and a model of 1 KiB; there is one leftover. Returns the run folders."""
    note(folder, *states)
    run_dirs = [folder.run(run["run_id"]) for run in folder.planned_runs()]
    for run_dir in run_dirs:
        for name, size in (("checkpoints/attempt-00001-step-000000005.pt", 2048), ("model/weights", 1024)):
            (run_dir / name).parent.mkdir()
            (run_dir / name).write_bytes(b"x" * size)
    (folder.path / ".plan.json.12").write_text("x" * 10)
    os.utime(folder.path / ".plan.json.12", (1.0, 1.0))
    return run_dirs


def files(run_dir: Path) -> list[str]:
    """The checkpoint and the model that a run still has."""
    return [path.parent.name for path in sorted(run_dir.glob("*/*"))]


def test_without_options_it_only_lists(sweep: Sweep, submitted: SweepFolder) -> None:
    done, failed = fill(submitted, State.COMPLETED, State.FAILED)
    output = sweep("clean")
    lines = output.out.splitlines()
    assert [line.split() for line in lines if "1x1" in line or ".plan" in line] == [
        ["checkpoints", "2", "KiB", done.name, "(1x1)"],
        ["models", "1", "KiB", done.name, "(1x1)"],
        ["leftovers", "10", "B", ".plan.json.12"],
    ]
    assert lines[0] == "s on local: 3.01 KiB can be removed"
    assert lines[-3:] == [
        "--checkpoints removes 2 KiB", "--models removes 1 KiB", "--leftovers removes 10 B"
    ]  # fmt: skip
    assert (output.exit_code, output.err, failed.name in output.out) == (0, "", False)
    assert files(done) == files(failed) == ["checkpoints", "model"]


def test_it_removes_what_is_named(sweep: Sweep, submitted: SweepFolder) -> None:
    """All leaves the models. A failed run keeps the checkpoint from which it resumes."""
    done, failed = fill(submitted, State.COMPLETED, State.FAILED)
    asks = "sweep clean asks before it removes files, and stdin is not a terminal (add --yes)"
    refused = sweep("clean", "s", "--all")
    assert (refused.exit_code, refused.err) == (2, f"error: {asks}\n")
    assert files(done) == ["checkpoints", "model"]
    assert sweep("clean", "s", "--all", "--yes").out.splitlines()[-1] == "removed 2.01 KiB"
    assert (files(done), files(failed)) == (["model"], ["checkpoints", "model"])
    assert sweep("clean", "--checkpoints", "--yes").out.endswith("nothing was removed: there are no checkpoints\n")
    assert sweep("clean", "--models", "--yes").out.endswith("removed 1 KiB\n")
    assert sweep("clean", "--all", "--yes") == Output(0, "s on local: nothing can be removed\n", "")
    assert (files(failed), (done / "summary.json").exists()) == (["checkpoints", "model"], True)


def test_a_dropped_run_has_nothing_to_resume(sweep: Sweep, submitted: SweepFolder, dropped: str) -> None:
    """Before it has ended, all of it stays."""
    fill(submitted, State.COMPLETED, State.RUNNING)
    assert dropped not in sweep("clean").out
    note(submitted, State.COMPLETED, State.FAILED)
    assert f"{dropped} (2x1), dropped" in sweep("clean").out
    sweep("clean", "--checkpoints", "--yes")
    assert files(submitted.run(dropped)) == ["model"]


def test_it_asks_at_a_terminal(sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = fill(submitted, State.COMPLETED, State.FAILED)
    for answer, last_line, left in (
        ("n", "nothing was removed", ["checkpoints", "model"]), ("y", "removed 2 KiB", ["model"])
    ):  # fmt: skip
        monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
        output = sweep("clean", "--checkpoints")
        assert output.out.splitlines()[-1] == f"Remove checkpoints, 2 KiB? [y/N]: {last_line}"
        assert files(done) == left


def test_a_run_sent_during_the_question_keeps_its_files(
    sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, _ = fill(submitted, State.COMPLETED, State.FAILED)

    class Slow(Terminal):
        def readline(self, *_: object) -> str:  # type: ignore[override]
            note(submitted, State.RUNNING)
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Slow())
    output = sweep("clean", "--checkpoints")
    error = "error: the runs have changed in the meantime; nothing was removed (try again)\n"
    assert (output.exit_code, output.err, files(done)) == (2, error, ["checkpoints", "model"])


def test_what_refuses_to_clean(sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = fill(submitted, State.COMPLETED, State.FAILED)
    with submission_lock(submitted.path):
        locked = sweep("clean", "--checkpoints", "--yes")
    assert (locked.exit_code, "another sweep command is running" in locked.err) == (2, True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: os.getuid() + 1)
        error = f"error: {str(submitted.path)!r} belongs to another user (only its owner can remove files)\n"
        assert sweep("clean", "--checkpoints", "--yes") == Output(2, "", error)
        assert sweep("clean").exit_code == 0
    submitted.write_plan({**json.loads(submitted.plan_file.read_text()), "kind": "slurm"})
    unknown = sweep("clean", "--checkpoints", "--yes")
    error = "error: without an answer of sacct, jobs may still be running; nothing was removed (try again)\n"
    assert (unknown.exit_code, unknown.err.endswith(error)) == (2, True)
    assert files(done) == ["checkpoints", "model"]
