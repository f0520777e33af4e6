"""sweep logs: which log it prints, how it follows one, and what it answers without one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disttrain.records.record_files import write_failure
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Output, Sweep, note

pytestmark = pytest.mark.process


def write_logs(folder: SweepFolder, job: str = "local-1-1") -> Path:
    """The log folder of the 2x1 run's job, with what both ranks wrote."""
    logs = folder.logs / job
    logs.mkdir()
    for rank in (0, 1):
        (logs / f"9_{rank}_log.out").write_text(f"out {rank}\n")
    (logs / "9_1_log.err").write_text("Traceback\n")
    return logs


def fail(folder: SweepFolder, rank: int) -> None:
    write_failure(folder.run(folder.planned_runs()[1]["run_id"]), rank, ValueError("no"))


def test_the_rank_that_failed_first(sweep: Sweep, submitted: SweepFolder) -> None:
    logs = write_logs(submitted)
    out = [f"==> {logs}/9_{rank}_log.out <==\nout {rank}\n" for rank in (0, 1)]
    assert sweep("logs", "2x1") == Output(0, out[0], "")
    fail(submitted, 1)
    with_error = f"{out[1]}\n==> {logs}/9_1_log.err <==\nTraceback\n"
    run_id = submitted.planned_runs()[1]["run_id"]
    assert sweep("logs", run_id[:6], "--sweep", "s") == Output(0, with_error, "")
    assert sweep("logs", run_id, "--rank", "0").out == out[0]


def test_the_latest_job_of_slurm(sweep: Sweep, submitted: SweepFolder) -> None:
    """A requeued job appends to its log."""
    run_id = submitted.planned_runs()[1]["run_id"]
    for job in ("7_0", "8"):
        ledger.record(submitted.path, {run_id: job}, 2.0)
    (submitted.logs / "7_0_0_log.out").write_text("earlier job\n")
    (submitted.logs / "8_0_log.out").write_text("attempt 1\nattempt 2\n")
    assert sweep("logs", "2x1").out == f"==> {submitted.logs}/8_0_log.out <==\nattempt 1\nattempt 2\n"


def test_a_run_that_was_not_sent_again(sweep: Sweep, submitted: SweepFolder) -> None:
    write_logs(submitted)
    ledger.skip(submitted.path, [submitted.planned_runs()[1]["run_id"]], 3.0, {}, ["7"])
    output = sweep("logs", "2x1")
    assert "out 0" in output.out
    assert output.err.endswith("because its smoke run has failed; this is the log of an earlier job\n")


def test_why_there_is_no_log(sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run["run_id"] for run in submitted.planned_runs())
    note(submitted, State.PENDING, State.CANCELLED)
    waits = f"error: {first} (1x1) still waits: PENDING (--follow waits for its start)\n"
    assert sweep("logs", "1x1") == Output(2, "", waits)
    for options in ([], ["--follow"]):
        output = sweep("logs", "2x1", *options)
        hint = "(its job ended before the rank started, or its log was removed)"
        error = f"error: rank 0 of {second} (2x1) has no log in {str(submitted.logs)!r}; CANCELLED {hint}\n"
        assert output == Output(2, "", error)
    out_of_range = f"error: --rank: rank 2 of {second} (2x1): its ranks are 0 to 1\n"
    assert sweep("logs", "2x1", "--rank", "2") == Output(2, "", out_of_range)
    assert sweep("logs").err == "error: RUN is missing (see sweep logs --help)\n"
    assert "no run of this sweep is '4x4'" in sweep("logs", "4x4").err
    ledger.forget(submitted.path, [first], 2.0)
    for options in ([], ["--follow"]):
        error = f"error: {first} (1x1) was never submitted (sweep submit sends it)\n"
        assert sweep("logs", "1x1", *options) == Output(2, "", error)
    monkeypatch.setattr(os, "access", lambda *_: False)
    error = f"error: {str(submitted.logs)!r} cannot be read (only the owner of a sweep can open its logs)\n"
    assert sweep("logs", "2x1") == Output(2, "", error)


def test_an_empty_log_is_said(sweep: Sweep, submitted: SweepFolder) -> None:
    (submitted.logs / "local-1-0").mkdir()
    file = submitted.logs / "local-1-0" / "9_0_log.out"
    file.touch()
    assert sweep("logs", "1x1") == Output(0, "", f"note: the log of rank 0 is empty: {file}\n")


def test_follow_until_the_end(sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the start, prints what is appended, and names the rank that failed in the meantime."""
    run_id = submitted.planned_runs()[1]["run_id"]
    note(submitted, State.PENDING, State.PENDING)

    def start() -> None:
        write_logs(submitted)
        note(submitted, State.COMPLETED, State.RUNNING)

    def end() -> None:
        with (submitted.logs / "local-1-1" / "9_0_log.out").open("a") as file:
            file.write("step 1\n")
        fail(submitted, 1)
        note(submitted, State.COMPLETED, State.FAILED)

    steps, sleep = iter([start, end]), time.sleep

    def work(seconds: float) -> None:
        next(steps, lambda: None)()
        sleep(seconds / 10)

    monkeypatch.setattr(time, "sleep", work)
    output = sweep("logs", "2x1", "--follow")
    assert output.out == f"==> {submitted.logs}/local-1-1/9_0_log.out <==\nout 0\nstep 1\n"
    assert (output.exit_code, output.err.splitlines()) == (0, [
        f"note: {run_id} (2x1) still waits: PENDING",
        f"note: rank 1 reported the first failure: sweep logs {run_id} --rank 1",
    ])  # fmt: skip


def test_ctrl_c_ends_following(sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_logs(submitted)
    note(submitted, State.COMPLETED, State.RUNNING)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    output = sweep("logs", "2x1", "--follow")
    assert (output.exit_code, output.out.splitlines()[1:], output.err) == (130, ["out 0"], "")


@pytest.mark.parametrize("lines", [10, 10**5], ids=["less than a buffer", "more than a pipe"])
def test_the_reader_may_leave(submitted: SweepFolder, lines: int) -> None:
    (submitted.logs / "local-1-0").mkdir()
    (submitted.logs / "local-1-0" / "9_0_log.out").write_text("a line\n" * lines)
    command = f"{sys.executable} -m jobs logs 1x1 --sweep {submitted.path} | head -n 2; echo ${{PIPESTATUS[*]}}"
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
    completed = subprocess.run(
        ["/bin/bash", "-c", command], cwd=submitted.path, env=environ, capture_output=True, text=True, check=True
    )
    assert completed.stdout.splitlines()[1:] == ["a line", "0 0"]
    assert completed.stderr == ""
