"""The attempts of a run since the user sent it: where each began and how it ended, in attempts.jsonl of its folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from disttrain.errors import UserError
from disttrain.records.json_values import check_fields, parse_object, to_json
from disttrain.records.record_files import CHECKPOINTS_NAME
from disttrain.records.script_metrics import last_step, metrics_files
from disttrain.records.summary_types import Failure

ATTEMPTS_NAME = "attempts.jsonl"
POLICY = "resume"  # the key of run.json for how the run resumes; only a run of a plain batch script has it
# A run that made no progress in this many attempts ends, whatever its budgets are.
MOST_WITHOUT_PROGRESS = 3

Cause = Literal["time limit", "preemption", "node failure", "termination", "request", "unknown"]
Requeue = Literal["slurm", "chain", "off"]
WarningSignal = Literal["USR2", "USR1", "TERM", "INT", "HUP", "CONT"]

ASKED_AGAIN = "the script asked to be started again"
_NO_PROGRESS = "made no progress"
_MANIFEST = re.compile(r"attempt-\d{5}-step-(\d{9})\.json")


class NotResumed(UserError):
    """A run was ended from outside, and does not start again by itself.

    The message begins with the cause, or with `ASKED_AGAIN` if nothing else was the cause.
    """


@dataclass(frozen=True)
class ResumePolicy:
    """How a run resumes after its job was ended, and how often.

    Attributes:
        requeue: slurm: the job requeues itself; chain: it submits a job that follows it; off: the user submits again.
        time_limit_s: The time limit of the job.
        warning_s: The time between Slurm's warning and the limit.
        max_timeouts: The number of time limits after which the run still resumes.
        max_preemptions: The number of preemptions and of ends whose cause is not known; also of the ends at which a
            script has asked by itself to be started again.
        max_node_failures: The number of node failures.
        warning_signal: The signal that the user's own script gets at the warning, without SIG.
    """

    requeue: Requeue
    time_limit_s: int
    warning_s: int
    max_timeouts: int
    max_preemptions: int
    max_node_failures: int
    warning_signal: WarningSignal = "USR2"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ResumePolicy:
        """The policy in a run.json.

        Raises:
            ValueError: A value is missing or wrong. The message is the reason, in one line.
        """
        policy: ResumePolicy = _from_json(cls, values)
        return policy


@dataclass(frozen=True)
class Attempt:
    """One attempt of a run.

    Attributes:
        job_id: The id of its job.
        first_step: The number of steps that were done before it, by the checkpoint from which it resumes; of a script,
            by what it has logged.
        start_s: Its start, in seconds since 1970.
        cause: Why it ended; None if it has not, or if nothing says why.
        last_step: The step after which it stopped and saved; None if it did not.
    """

    job_id: str
    first_step: int
    start_s: float
    cause: str | None = None
    last_step: int | None = None


@dataclass(frozen=True)
class _End:
    cause: str
    last_step: int | None = None


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The attempts of a run, the latest last. Damaged lines are left out."""
    try:
        lines = (run_dir / ATTEMPTS_NAME).read_bytes().splitlines()
    except OSError:
        return []
    attempts: list[Attempt] = []
    for line in lines:
        try:
            values = parse_object(line)
            if "first_step" in values:
                attempts.append(_from_json(Attempt, values))
            elif attempts:
                attempts[-1] = dataclasses.replace(attempts[-1], **vars(_from_json(_End, values)))
        except ValueError:
            continue
    return attempts


def log_start(run_dir: Path, attempt: Attempt) -> None:
    """Appends the start of an attempt.

    Raises:
        OSError: The file cannot be written.
    """
    _append(run_dir, {"job_id": attempt.job_id, "first_step": attempt.first_step, "start_s": attempt.start_s})


def log_end(run_dir: Path, cause: Cause, last_step: int | None = None) -> None:
    """Appends the end of the latest attempt.

    Raises:
        OSError: The file cannot be written.
    """
    _append(run_dir, {"cause": cause, "last_step": last_step})


def checkpoint_step(run_dir: Path) -> int:
    """The number of steps in the latest checkpoint of a run, by the names of the files; 0 without one."""
    folder = run_dir / CHECKPOINTS_NAME
    matches = (_MANIFEST.fullmatch(path.name) for path in folder.glob("attempt-*.json"))
    return max((int(match[1]) for match in matches if match), default=0)


def steps_done(run_dir: Path) -> int | None:
    """The number of steps from which a run continues: those of `checkpoint_step`.

    The checkpoints of a script are its own. It has done the steps that it has logged; None if it has logged none.
    """
    scripts = metrics_files(run_dir)
    if not scripts:
        return checkpoint_step(run_dir)
    return max(filter(None, (last_step(run_dir, rank) for rank in scripts)), default=None)


def why_not_again(attempts: Sequence[Attempt], step: int | None, policy: ResumePolicy) -> str | None:
    """Why a run does not resume any more, in one line; None if it does.

    Args:
        attempts: The attempts that have ended, the latest last.
        step: The number of steps from which it continues; None if it is not known.
        policy: How often it resumes.
    """
    latest = attempts[-MOST_WITHOUT_PROGRESS:]
    after = ""
    if step is not None:
        after = f" after step {step}"
    without = [attempt for attempt in latest if step is not None and attempt.first_step >= step]
    if len(without) == MOST_WITHOUT_PROGRESS:
        ends = ", ".join(attempt.cause or "unknown" for attempt in latest)
        return f"{len(latest)} attempts {_NO_PROGRESS}{after} (they ended by: {ends})"
    causes = [attempt.cause or "unknown" for attempt in attempts]
    preemptions = len([cause for cause in causes if cause in ("preemption", "unknown")])
    for name, key, number, most in (
        ("time limit", "max_timeouts", causes.count("time limit"), policy.max_timeouts),
        ("preemption", "max_preemptions", preemptions, policy.max_preemptions),
        ("request of the script", "max_preemptions", causes.count("request"), policy.max_preemptions),
        ("node failure", "max_node_failures", causes.count("node failure"), policy.max_node_failures),
    ):
        if number > most:
            return f"{name} number {number}{after}, and {key} is {most}"
    return None


def not_resumed_cause(failure: Failure) -> str | None:
    """The cause at which a run ended that does not start again by itself; None for any other failure."""
    if failure.error != NotResumed.__name__:
        return None
    if _NO_PROGRESS in failure.message:
        return "no progress"
    if failure.message.startswith(ASKED_AGAIN):
        return "request"
    return failure.message.partition(":")[0]


def _append(run_dir: Path, values: dict[str, Any]) -> None:
    with (run_dir / ATTEMPTS_NAME).open("ab") as file:
        file.write(f"{to_json(values)}\n".encode())


def _from_json(kind: Any, values: dict[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    known = {name: value for name, value in values.items() if name in names}
    check_fields(kind, known)
    return kind(**known)
