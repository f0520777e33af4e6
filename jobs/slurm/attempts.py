"""One attempt of a job as sacct reports it, and a history of attempts that lasts longer than sacct's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

from disttrain.records.json_values import check_fields
from jobs.slurm.states import State, parse_state


class AttemptKey(NamedTuple):
    """The identity of an attempt, the same before and after it starts."""

    job_id: str
    submit_s: int | None


@dataclass(frozen=True)
class AccountingRow:
    """One attempt of one job: its job row in sacct, with figures from the rows of its steps.

    A requeue keeps the job id and begins a new attempt with a new Submit. Unknown values are None. For an attempt that
    never started, all values that only a started attempt has are None.

    Attributes:
        job_id: The job id: ``123``, or ``123_4`` for a task of an array.
        job_id_raw: The number that the job sees as SLURM_JOB_ID; None for a task that is still part of a waiting array.
        state: The job's state. Its steps do not change it: the batch step of a timed-out job is CANCELLED.
        submit_s: The time of the submission or the requeue, in epoch seconds like the other times.
        eligible_s: The time from which it could start: later than submit_s after a hold, a dependency or a begin time.
        start_s: The start time.
        end_s: The end time, or the time of the cancellation before a start.
        elapsed_s: The seconds on its nodes until now or until its end, without suspension.
        timelimit_min: The time limit in minutes; None when unlimited.
        partition: The partition in which it ran, or the partitions in which it may run.
        nodes: The number of allocated nodes; before the start, of requested nodes.
        node_list: The allocated nodes as a Slurm hostlist.
        alloc_cpus: The number of CPUs on all its nodes.
        alloc_gpus: The number of GPUs on all its nodes; None where the site does not account GPUs.
        max_rss_bytes: The memory of the largest task of the largest step. sacct has no total for a step or a node.
        requested_memory_bytes: The requested memory per node; None if all or none was requested.
        exit_code: The exit code of the batch script. Up to Slurm 25.05 sacct subtracts 128 from codes of 128 and more.
        exit_signal: The signal that ended the batch script. Slurm also writes 125 here for out of memory.
        derived_exit_code: The highest exit code of the job's steps, without the subtraction. After a requeue Slurm
            22.05 still shows the code of the earlier attempt when the later one succeeds.
        derived_exit_signal: The signal that belongs to derived_exit_code.
        reason: The last reason why it did not start, other than priority or resources. It stays after the start: a job
            that was submitted held and then released shows JobHeldUser until its end.
        failed_node: The node whose failure ended it (from Slurm 23.02).
        out_of_memory: Whether Slurm ended the job or one of its steps for memory; the job's own state may be FAILED.
        job_name: The job's name.
        user_id: The number of the user whose job it is.
        cancelled_by: The number of the user who cancelled it.
        unknown_state: Slurm's text for a state that this release does not know; None for a known state.
    """

    job_id: str
    job_id_raw: str | None = None
    state: State = State.UNKNOWN
    submit_s: int | None = None
    eligible_s: int | None = None
    start_s: int | None = None
    end_s: int | None = None
    elapsed_s: int | None = None
    timelimit_min: int | None = None
    partition: str | None = None
    nodes: int | None = None
    node_list: str | None = None
    alloc_cpus: int | None = None
    alloc_gpus: int | None = None
    max_rss_bytes: int | None = None
    requested_memory_bytes: int | None = None
    exit_code: int | None = None
    exit_signal: int | None = None
    derived_exit_code: int | None = None
    derived_exit_signal: int | None = None
    reason: str | None = None
    failed_node: str | None = None
    out_of_memory: bool = False
    job_name: str | None = None
    user_id: int | None = None
    cancelled_by: int | None = None
    unknown_state: str | None = None

    @property
    def key(self) -> AttemptKey:
        """The attempt's identity, which Slurm uses too (a job id is used once in a second).

        Start, JobIDRaw and DBIndex do not identify an attempt: a waiting array is one record, and a task gets its own
        record only when it starts.
        """
        return AttemptKey(self.job_id, self.submit_s)

    @property
    def queue_wait_s(self) -> int | None:
        """start_s - submit_s: how long the user waited, with any hold, dependency or delay after a requeue.

        The waits and run times of all attempts add up to the lifetime of the job, except for the few seconds that a
        requeue takes. Slurm's own "Planned" is start_s - eligible_s.
        """
        if self.start_s is None or self.submit_s is None:
            return None
        return self.start_s - self.submit_s

    @property
    def state_text(self) -> str:
        """The state in Slurm's words, also one that this release does not know."""
        return self.unknown_state or self.state.value

    @property
    def gpu_hours(self) -> float | None:
        """alloc_gpus * elapsed_s / 3600 until now; 0 before it starts, None where GPUs are not accounted."""
        if self.start_s is None:
            return 0.0
        if self.alloc_gpus is None or self.elapsed_s is None:
            return None
        return self.alloc_gpus * self.elapsed_s / 3600

    @property
    def counts_gpus(self) -> bool:
        """Whether the site accounts GPUs, as far as this attempt shows."""
        return self.start_s is None or self.alloc_gpus is not None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AccountingRow:
        """The inverse of to_json, also for rows of other versions: unknown keys are ignored, missing ones are None.

        Raises:
            ValueError: A value has a wrong type, or the job id is missing.
        """
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        check_fields(cls, known)
        return cls(**{**known, "state": parse_state(known.get("state", ""))})


def attempts_by_job(rows: Iterable[AccountingRow]) -> dict[str, tuple[AccountingRow, ...]]:
    """The attempts of each job by its id, the earliest first."""
    jobs: dict[str, list[AccountingRow]] = {}
    for row in rows:
        jobs.setdefault(row.job_id, []).append(row)
    return {job_id: tuple(sorted(attempts, key=lambda row: row.submit_s or 0)) for job_id, attempts in jobs.items()}


def attempts_of(job_id: str, attempts: Mapping[str, Sequence[AccountingRow]]) -> tuple[AccountingRow, ...]:
    """The attempts of a job; for an array task without any, the attempts of its array that never started.

    Args:
        job_id: The id of the job.
        attempts: All known attempts by job id, oldest first.
    """
    own_attempts = tuple(attempts.get(job_id, ()))
    array, _, task = job_id.partition("_")
    if own_attempts or not task:
        return own_attempts
    # If an array is cancelled within a second or two of sbatch, sacct lists only the array's id, and no tasks.
    return tuple(attempt for attempt in attempts.get(array, ()) if attempt.start_s is None)


def merge_history(old_rows: Iterable[AccountingRow], new_rows: Iterable[AccountingRow]) -> tuple[AccountingRow, ...]:
    """Merges rows of earlier queries with new rows.

    Args:
        old_rows: The rows of earlier queries, oldest first.
        new_rows: The rows of the latest query.

    Returns:
        One row for each attempt, in order of appearance. The newer row counts. What sacct has deleted since then is
        preserved: attempts that it no longer lists, and every value that the newer row of a started attempt lacks
        (sites purge steps before jobs).
    """
    merged: dict[AttemptKey, AccountingRow] = {}
    for row in (*old_rows, *new_rows):
        key = row.key
        merged[key] = _newest(merged[key], row) if key in merged else row
    return tuple(merged.values())


def _newest(earlier: AccountingRow, later: AccountingRow) -> AccountingRow:
    """Merges two rows of the same attempt."""
    # An attempt only moves forward. sacct's record of a waiting array may be outdated: it still lists tasks, as PENDING
    # or even as CANCELLED, for some seconds after they have started and have records of their own.
    if _progress(earlier) > _progress(later):
        earlier, later = later, earlier
    if earlier == later:
        return later
    lacking = {name: value for name, value in vars(earlier).items() if getattr(later, name) is None}
    if not _are_alike(earlier, later):
        lacking = {"max_rss_bytes": lacking.get("max_rss_bytes", later.max_rss_bytes)}
    if later.state is not State.UNKNOWN:
        lacking.pop("unknown_state", None)
    elif later.unknown_state is None:
        lacking["state"] = earlier.state  # the later row has no state at all
    return replace(later, **lacking, out_of_memory=earlier.out_of_memory or later.out_of_memory)


def _are_alike(earlier: AccountingRow, later: AccountingRow) -> bool:
    """Whether a value that only the earlier row has still holds.

    The values of an attempt that waits may change to none. Before the start, they may be those of a waiting array.
    """
    waits = later.start_s is None and later.end_s is None
    return not waits and (earlier.start_s is None) == (later.start_s is None)


def _progress(row: AccountingRow) -> tuple[bool, bool]:
    """The progress of the attempt. A start counts more than an end, which a job cancelled in the queue has too."""
    return row.start_s is not None, row.end_s is not None
