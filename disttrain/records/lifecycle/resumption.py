"""What rank 0 of a Slurm job does around an attempt: it checks that the run may resume, and starts the next attempt."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from disttrain.environment.variables import parse_count
from disttrain.errors import STOPPED_STATUS, ScriptStopped, Stopped
from disttrain.records.lifecycle.attempt_log import (
    Attempt,
    Cause,
    NotResumed,
    ResumePolicy,
    log_end,
    log_start,
    read_attempts,
    steps_done,
    why_not_again,
)
from disttrain.records.record_files import SUMMARY_NAME

# srun ends rank 0 two minutes after the first of the other ranks: all of this must fit into that time. The commands of
# Slurm give up on a controller after 10 to 30 s; a chain waits for the submissions of other runs too.
_QUERY_TIMEOUT_S, _REQUEUE_TIMEOUT_S, _CHAIN_TIMEOUT_S = 10, 45, 95
_WAIT_FOR_END_S = 45  # Slurm ends a requeued job within seconds
_WAIT_AFTER_TERM_S = 5
# Slurm may send the warning up to 60 s early, and the clock of this process starts some seconds after the job's.
_EARLY_S = 90
_NOT_ENDED = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")
_CAUSES: dict[str, Cause] = {"NODE_FAIL": "node failure", "PREEMPTED": "preemption", "TIMEOUT": "time limit"}


def begin_attempt(run_dir: Path, job_id: str, policy: ResumePolicy, environ: Mapping[str, str]) -> None:
    """Logs the start of an attempt, and the end of the one before if that could not do it.

    Args:
        run_dir: The folder of the run.
        job_id: The id of the job.
        policy: How often the run resumes.
        environ: The environment of sacct.

    Raises:
        NotResumed: The run has used its budget, or makes no progress.
    """
    if (run_dir / SUMMARY_NAME).exists():
        return  # it was done when its node failed: the ranks only return
    attempts = read_attempts(run_dir)
    if attempts and attempts[-1].cause in (None, "termination"):
        # At SIGTERM a rank does not know why. That the job starts again, it may owe to a lost node.
        cause = _cause_by_accounting(attempts[-1].job_id, environ)
        log_end(run_dir, cause, attempts[-1].last_step)
        attempts = read_attempts(run_dir)
    step = steps_done(run_dir)
    reason = why_not_again(attempts, step, policy)
    if reason is not None:
        text = f"{attempts[-1].cause or 'unknown'}: the run does not resume: {reason}"
        raise NotResumed(text, hint="sweep retry resumes it with a new budget")
    log_start(run_dir, Attempt(job_id, step or 0, time.time()))


def end_attempt(
    stopped: Stopped,
    run_dir: Path,
    job_id: str,
    policy: ResumePolicy,
    began_s: float,
    environ: Mapping[str, str],
    chain: Sequence[str] = (),
) -> None:
    """Starts the next attempt of a run that has stopped, and waits until Slurm ends this job.

    Args:
        stopped: Why and where the ranks have stopped.
        run_dir: The folder of the run.
        job_id: The id of the job.
        policy: How the run resumes.
        began_s: The `time.monotonic` time at which this process began.
        environ: The environment of Slurm's commands.
        chain: The command that submits the next job of a chain, without its last argument, which is the id of this job;
            empty if there is none.

    Raises:
        NotResumed: The run does not resume by itself. The message says why, and that it has a checkpoint.
    """
    cause = _cause_of(stopped, job_id, policy, time.monotonic() - began_s, environ)
    with contextlib.suppress(OSError):  # a full disk must not keep the run from its next attempt
        log_end(run_dir, cause, stopped.step)
    text = f"{cause}: {stopped.how}"
    if cause == "termination":
        raise NotResumed(text, hint="sweep retry resumes it")
    attempts = read_attempts(run_dir)
    reason = why_not_again(attempts, steps_done(run_dir), policy)
    if reason is None and policy.requeue == "off":
        reason = "requeue is off"
    if reason is None:
        reason = _start_next(job_id, policy, environ, chain)
    if reason is not None:
        raise NotResumed(f"{text}; it does not resume by itself: {reason}", hint="sweep submit resumes it")
    print(f"{text}; the run resumes in its next attempt", flush=True)
    if policy.requeue == "slurm":
        time.sleep(_WAIT_FOR_END_S)
    sys.exit(STOPPED_STATUS)


def _start_next(job_id: str, policy: ResumePolicy, environ: Mapping[str, str], chain: Sequence[str]) -> str | None:
    """Requeues this job, or submits the next one; why that failed, None if it did not."""
    # For a task of an array its own id: SLURM_JOB_ID may name the array, and all its tasks with it.
    command, timeout_s = ["scontrol", "requeue", job_id], _REQUEUE_TIMEOUT_S
    if policy.requeue == "chain":
        if not chain:
            return "its batch script submits no further job"
        command, timeout_s = [*chain, job_id], _CHAIN_TIMEOUT_S
    try:
        done = run_program(command, environ, timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {getattr(error, 'strerror', None) or 'no answer'}"
    if done.returncode == 0:
        return None
    return " ".join(done.stderr.split()) or f"{' '.join(command)} ended with status {done.returncode}"


def run_program(
    command: Sequence[str], environ: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs a command. At the timeout it gets SIGTERM first, at which a submission gives back its lock.

    Raises:
        OSError: It cannot be started.
        subprocess.TimeoutExpired: It has not ended in time.
    """
    shown = {name: value for name, value in environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    with subprocess.Popen(
        command, env=shown, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace",
    ) as process:  # fmt: skip
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_WAIT_AFTER_TERM_S)
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _cause_of(
    stopped: Stopped, job_id: str, policy: ResumePolicy, elapsed_s: float, environ: Mapping[str, str]
) -> Cause:
    """Why the ranks have stopped. Slurm sends the same warning before a time limit and for a preemption."""
    if isinstance(stopped, ScriptStopped) and not (stopped.warned or stopped.terminated):
        return "request"
    # After a scancel, the job no longer runs by the controller: a requeue would bring it back. Without
    # preempt_send_user_signal, a preemption begins with SIGTERM too, and the job still runs in its grace time.
    state = _answer(["squeue", "--noheader", f"--jobs={job_id}", "--format=%T"], environ)
    if state not in ("RUNNING", "") or (stopped.terminated and not state):
        return "termination"
    if stopped.terminated:
        return "preemption"
    left_s = policy.time_limit_s - elapsed_s
    end_s = parse_count(environ.get("SLURM_JOB_END_TIME", ""))  # not in every release
    if end_s is not None:
        left_s = end_s - time.time()
    return "time limit" if left_s <= policy.warning_s + _EARLY_S else "preemption"


def _cause_by_accounting(job_id: str, environ: Mapping[str, str]) -> Cause:
    """Why the latest ended attempt of a job has ended, if sacct is there and knows."""
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", "--allocations", f"--jobs={job_id}", "-o", "State"]
    states = [line.split()[0] for line in _answer(command, environ).splitlines() if line.split()]
    ended = [state for state in states if state not in _NOT_ENDED]
    return _CAUSES.get(ended[-1], "unknown") if ended else "unknown"


def _answer(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = run_program(command, environ, _QUERY_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
