"""What rank 0 does around an attempt: budgets at its start, and the next attempt after a stop."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

import disttrain.records.lifecycle.resumption as resumption
from disttrain.errors import STOPPED_STATUS, ScriptStopped, Stopped
from disttrain.records.lifecycle.attempt_log import Attempt, NotResumed, ResumePolicy, log_end, log_start, read_attempts
from disttrain.records.lifecycle.resumption import begin_attempt, end_attempt
from disttrain.records.record_files import SUMMARY_NAME
from disttrain.records.script_metrics import new_metrics_file

pytestmark = pytest.mark.process

POLICY = ResumePolicy("slurm", 3600, 120, max_timeouts=1, max_preemptions=1, max_node_failures=1)


class Programs:
    """Substitutes for Slurm's programs on PATH. Each call is noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.environ = {"PATH": str(self.folder), "SLURM_JOB_ID": "9"}

    def add(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.folder}/calls\n{script}\n')
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    programs = Programs(tmp_path)
    monkeypatch.setenv("PATH", programs.environ["PATH"])  # where subprocess looks for a program
    monkeypatch.setattr(resumption, "_WAIT_FOR_END_S", 0)
    return programs


def save_checkpoint(run_dir: Path, step: int) -> None:
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    (run_dir / "checkpoints" / f"attempt-00001-step-{step:09d}.json").touch()


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ("printf 'NODE_FAIL\\nPENDING\\n'", "node failure"),
        ("printf 'REQUEUED\\nPREEMPTED\\nRUNNING\\n'", "preemption"),
        ("printf 'RUNNING\\n'", "unknown"),
        ("exit 1", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_end_of_an_attempt_that_could_not_log_it(
    answer: str | None, cause: str, programs: Programs, tmp_path: Path
) -> None:
    if answer is not None:
        programs.add("sacct", answer)
    begin_attempt(tmp_path, "7_3", POLICY, programs.environ)
    assert programs.calls == []
    save_checkpoint(tmp_path, 40)
    begin_attempt(tmp_path, "7_3", POLICY, programs.environ)
    assert [(attempt.first_step, attempt.cause) for attempt in read_attempts(tmp_path)] == [(0, cause), (40, None)]


def test_accounting_knows_better_why_a_rank_was_ended(programs: Programs, tmp_path: Path) -> None:
    """A node was lost: the ranks on the others get SIGTERM, save, and do not know why."""
    programs.add("sacct", "echo NODE_FAIL")
    log_start(tmp_path, Attempt("7", 0, 0.0))
    log_end(tmp_path, "termination", 40)
    begin_attempt(tmp_path, "7", POLICY, programs.environ)
    first = read_attempts(tmp_path)[0]
    assert (first.cause, first.last_step) == ("node failure", 40)


def test_a_run_over_its_budget_does_not_begin(programs: Programs, tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step)
        log_start(tmp_path, Attempt("7", step - 10, 0.0))
        log_end(tmp_path, "node failure")
    before = read_attempts(tmp_path)
    with pytest.raises(NotResumed) as caught:
        begin_attempt(tmp_path, "7", POLICY, programs.environ)
    assert str(caught.value) == (
        "node failure: the run does not resume: node failure number 2 after step 20, and max_node_failures is 1"
        " (sweep retry resumes it with a new budget)"
    )
    assert read_attempts(tmp_path) == before


@pytest.mark.parametrize(("end_in_s", "cause"), [(100, "time limit"), (3000, "preemption")])
def test_a_warned_job_requeues_itself(
    end_in_s: int, cause: str, programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.add("scontrol", "")
    begin_attempt(tmp_path, "7_3", POLICY, programs.environ)
    save_checkpoint(tmp_path, 60)
    environ = {**programs.environ, "SLURM_JOB_END_TIME": str(int(time.time()) + end_in_s)}
    with pytest.raises(SystemExit) as ended:
        end_attempt(Stopped(60, terminated=False), tmp_path, "7_3", POLICY, time.monotonic(), environ)
    assert ended.value.code == STOPPED_STATUS
    assert programs.calls[-1:] == ["scontrol requeue 7_3"], "its own task, not the array"
    assert [(attempt.cause, attempt.last_step) for attempt in read_attempts(tmp_path)] == [(cause, 60)]
    text = f"{cause}: stopped after step 60, with a checkpoint; the run resumes in its next attempt\n"
    assert capsys.readouterr().out == text


def test_without_the_time_of_the_end_the_age_of_the_rank_decides(programs: Programs, tmp_path: Path) -> None:
    programs.add("scontrol", "")
    for age_s in (3500, 600):
        begin_attempt(tmp_path, "7", POLICY, programs.environ)
        with pytest.raises(SystemExit):
            end_attempt(
                Stopped(60, terminated=False), tmp_path, "7", POLICY, time.monotonic() - age_s, programs.environ
            )
    assert [attempt.cause for attempt in read_attempts(tmp_path)] == ["time limit", "preemption"]


@pytest.mark.parametrize(
    ("requeue", "script", "reason"),
    [
        ("slurm", "echo 'scontrol: error: Requeue is disabled' >&2; exit 1", "scontrol: error: Requeue is disabled"),
        ("slurm", None, "scontrol: No such file or directory"),
        ("off", "", "requeue is off"),
    ],
)
def test_why_a_run_does_not_resume_by_itself(
    requeue: str, script: str | None, reason: str, programs: Programs, tmp_path: Path
) -> None:
    if script is not None:
        programs.add("scontrol", script)
    begin_attempt(tmp_path, "7", POLICY, programs.environ)
    save_checkpoint(tmp_path, 60)
    policy = dataclasses.replace(POLICY, requeue=requeue)  # type: ignore[arg-type]
    environ = {**programs.environ, "SLURM_JOB_END_TIME": str(int(time.time()))}
    with pytest.raises(NotResumed) as caught:
        end_attempt(Stopped(60, terminated=False), tmp_path, "7", policy, time.monotonic(), environ)
    assert str(caught.value) == (
        "time limit: stopped after step 60, with a checkpoint; it does not resume by itself:"
        f" {reason} (sweep submit resumes it)"
    )


def test_the_last_time_limit_of_the_budget_starts_no_further_attempt(programs: Programs, tmp_path: Path) -> None:
    programs.add("scontrol", "")
    environ = {**programs.environ, "SLURM_JOB_END_TIME": str(int(time.time()))}
    save_checkpoint(tmp_path, 10)
    log_start(tmp_path, Attempt("7", 0, 0.0))
    log_end(tmp_path, "time limit", 10)
    begin_attempt(tmp_path, "7", POLICY, environ)
    save_checkpoint(tmp_path, 20)
    with pytest.raises(NotResumed, match="time limit number 2 after step 20, and max_timeouts is 1"):
        end_attempt(Stopped(20, terminated=False), tmp_path, "7", POLICY, time.monotonic(), environ)
    assert programs.calls == []


@pytest.mark.parametrize(
    ("terminated", "state", "cause"),
    [
        (True, "RUNNING", "preemption"),
        (True, "COMPLETING", "termination"),
        (True, "", "termination"),
        (False, "RUNNING", "preemption"),
        (False, "CANCELLED", "termination"),  # at the same time as the warning
        (False, "", "preemption"),  # squeue is not there
    ],
)
def test_a_cancelled_job_is_not_started_again(
    terminated: bool, state: str, cause: str, programs: Programs, tmp_path: Path
) -> None:
    """SIGTERM begins a preemption, while the job still runs, or follows a scancel."""
    programs.add("scontrol", "")
    programs.add("squeue", f"echo {state}")
    begin_attempt(tmp_path, "9_1", POLICY, programs.environ)
    save_checkpoint(tmp_path, 60)
    with pytest.raises((SystemExit, NotResumed)) as ended:
        end_attempt(Stopped(60, terminated=terminated), tmp_path, "9_1", POLICY, time.monotonic(), programs.environ)
    # The number of the job alone would name all tasks, if it is that of the array.
    assert programs.calls[0] == "squeue --noheader --jobs=9_1 --format=%T"
    assert programs.calls[1:] == (["scontrol requeue 9_1"] if cause == "preemption" else [])
    if cause == "termination":
        assert str(ended.value) == "termination: stopped after step 60, with a checkpoint (sweep retry resumes it)"
    assert read_attempts(tmp_path)[-1].cause == cause


def test_a_run_that_was_done_needs_no_budget(programs: Programs, tmp_path: Path) -> None:
    for number in range(3):
        log_start(tmp_path, Attempt("7", 10 * number, 0.0))
        log_end(tmp_path, "node failure")
    (tmp_path / SUMMARY_NAME).write_text('{"steps": 3}')
    begin_attempt(tmp_path, "7", POLICY, programs.environ)  # its checkpoints are removed: it would have no progress
    assert len(read_attempts(tmp_path)) == 3


def test_a_step_that_could_not_be_saved(programs: Programs, tmp_path: Path) -> None:
    programs.add("scontrol", "")
    begin_attempt(tmp_path, "7", POLICY, programs.environ)
    stopped = Stopped(60, terminated=False, problem="No space left on device")
    text = r"stopped after step 60, which could not be saved \(No space left on device\)"
    policy = dataclasses.replace(POLICY, requeue="off")
    with pytest.raises(NotResumed, match=text):
        end_attempt(stopped, tmp_path, "7", policy, time.monotonic(), dict(os.environ))


def log_steps(run_dir: Path, *steps: int) -> None:
    with new_metrics_file(run_dir, 0).open("a") as file:
        file.writelines(f'{{"step": {step}}}\n' for step in steps)


@pytest.mark.parametrize(("warned", "cause"), [(True, "preemption"), (False, "request")])
def test_a_script_that_asks_for_it_starts_again(
    warned: bool, cause: str, programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.add("scontrol", "")
    programs.add("squeue", "echo RUNNING")
    begin_attempt(tmp_path, "7", POLICY, programs.environ)
    log_steps(tmp_path, 10, 20)
    stopped = ScriptStopped(20, terminated=False, warned=warned)
    with pytest.raises(SystemExit):
        end_attempt(stopped, tmp_path, "7", POLICY, time.monotonic(), programs.environ)
    assert programs.calls[-1:] == ["scontrol requeue 7"]
    text = f"{cause}: the script ended with status 85 after step 20; the run resumes in its next attempt\n"
    assert capsys.readouterr().out == text
    begin_attempt(tmp_path, "7", POLICY, programs.environ)
    assert [attempt.first_step for attempt in read_attempts(tmp_path)] == [0, 20]


def test_a_script_asks_only_as_often_as_its_budget_allows(programs: Programs, tmp_path: Path) -> None:
    programs.add("scontrol", "")
    policy = dataclasses.replace(POLICY, max_preemptions=4)
    stopped = ScriptStopped(None, terminated=False, warned=False)
    for _ in range(4):  # without metrics, no one knows whether it makes progress
        begin_attempt(tmp_path, "7", policy, programs.environ)
        log_steps(tmp_path)
        with pytest.raises(SystemExit):
            end_attempt(stopped, tmp_path, "7", policy, time.monotonic(), programs.environ)
    begin_attempt(tmp_path, "7", policy, programs.environ)
    with pytest.raises(NotResumed) as caught:
        end_attempt(stopped, tmp_path, "7", policy, time.monotonic(), programs.environ)
    assert str(caught.value) == (
        "request: the script ended with status 85; it does not resume by itself: request of the script number 5, and"
        " max_preemptions is 4 (sweep submit resumes it)"
    )


def test_a_script_that_logs_the_same_step_makes_no_progress(programs: Programs, tmp_path: Path) -> None:
    for _ in range(4):
        log_steps(tmp_path, 30)
        log_start(tmp_path, Attempt("7", 30, 0.0))
        log_end(tmp_path, "node failure")
    with pytest.raises(NotResumed, match="3 attempts made no progress after step 30"):
        begin_attempt(tmp_path, "7", dataclasses.replace(POLICY, max_node_failures=9), programs.environ)
