"""The options of sweep retry."""

from __future__ import annotations

import pytest

from disttrain.records.record_files import write_failure
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.command import Output, Sweep, note

pytestmark = pytest.mark.process


def test_a_local_retry_by_state_and_reason(sweep: Sweep, submitted: SweepFolder) -> None:
    note(submitted, State.FAILED, State.FAILED)
    first, second = (run["run_id"] for run in submitted.planned_runs())
    write_failure(submitted.run(second), 1, ValueError("loss is not finite"))
    nothing = "nothing to send: no run of s on local has failed or was cancelled"
    assert sweep("retry", "--state", "timeout").out == f"{nothing} with state TIMEOUT\n"
    both = sweep("retry", "--state", "FAILED", "--reason", "out of memory").out
    assert both == f"{nothing} with state FAILED and with 'out of memory' in its reason\n"
    sent = sweep("retry", "--reason", "LOSS is not", "--state", "failed")
    assert sent == Output(0, "s on local: sending 1 of 2 runs again\n", "")
    assert not (submitted.run(second) / "failure-rank00001.json").exists()
    assert first != second


def test_what_is_refused_sends_nothing(sweep: Sweep, submitted: SweepFolder) -> None:
    note(submitted, State.FAILED, State.FAILED)
    local = "error: cluster 'local' has no Slurm, so --exclude node17 would change nothing (leave it out)\n"
    assert sweep("retry", "--exclude", "node17") == Output(2, "", local)
    unknown = sweep("retry", "--state", "timeot")
    known = "BOOT_FAIL, CANCELLED, DEADLINE, FAILED, NODE_FAIL, OUT_OF_MEMORY, PREEMPTED, REVOKED, TIMEOUT"
    message = f"'timeot' is no state of a failed or cancelled run (did you mean TIMEOUT? known: {known})"
    assert unknown == Output(2, "", f"error: --state: {message}\n")
    for state in ("COMPLETED", "RUNNING"):
        assert "is no state of a failed or cancelled run" in sweep("retry", "--state", state).err
    assert sweep("retry", "--memory-gb-per-gpu", "much").exit_code == 2


def test_status_says_what_failed_runs_have_in_common(
    sweep: Sweep, submitted: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "all 3 failed runs used node17: sweep retry --exclude node17 leaves it out"
    monkeypatch.setattr(
        "jobs.results.failures.failure_pattern.failure_patterns", lambda results: [line][: len(results) - 1]
    )
    for command in ("status", "collect"):
        assert sweep(command).out.endswith(f"\n{line}\n")
    assert line not in sweep("status", "--json").out
    monkeypatch.setattr("jobs.cli.results_output._PIPE_HEIGHT", 1)
    overview = sweep("status").out
    assert overview.splitlines()[0] == "s on local: 2 runs, 2 PENDING"
    assert overview.endswith(f"--all-runs shows every run, sweep collect -o FILE writes every measurement\n{line}\n")
