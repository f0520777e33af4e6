"""One attempt of a job as sacct accounted it, and the history of attempts that outlives sacct's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from jobs.slurm.states import State, parse_state


@dataclass(frozen=True)
class AttemptKey:
    """What tells one attempt from all others, before it starts and after."""

    job_id: str
    submit_s: int | None


@dataclass(frozen=True)
class AccountingRow:
    """One attempt of one job: its job row in sacct, and what its steps add.

    A requeue keeps the job id and begins a new attempt with a new Submit. What is not known is None; for an attempt
    that never started, that is everything that only a started one has.

    Attributes:
        job_id: ``123``, or ``123_4`` for an array's task.
        job_id_raw: The number that the job sees as SLURM_JOB_ID; None while a task is but a part of its waiting array.
        state: The job's state. Its steps do not change it: a timed-out job's batch step is CANCELLED.
        submit_s: Submitted, or requeued, in epoch seconds, like the other times.
        eligible_s: From when it could start: later than submit_s after a hold, a dependency or a begin time.
        start_s: Started.
        end_s: Ended, or was cancelled before it started.
        elapsed_s: Seconds on its nodes until now or its end, without suspension.
        timelimit_min: Minutes; None when unlimited.
        partition: Where it ran, or those it may run in.
        nodes: Allocated nodes, or requested ones before it started.
        node_list: As a Slurm hostlist.
        alloc_cpus: On all its nodes.
        alloc_gpus: On all its nodes; None where the site does not account GPUs.
        max_rss_bytes: The largest task of the largest step: sacct knows no total, neither for a step nor for a node.
        exit_code: Of the batch script. Up to Slurm 25.05 sacct prints codes from 128 on with 128 taken off.
        exit_signal: That ended the batch script. Slurm also writes 125 here for out of memory.
        derived_exit_code: The highest of the job's steps, nothing taken off. After a requeue Slurm 22.05 still shows
            the earlier attempt's when the later one succeeds.
        derived_exit_signal: That goes with derived_exit_code.
        restarts: How often it was requeued (from Slurm 24.11).
        reason: The last reason that kept it from starting, other than priority or resources. It stays after the start:
            a job that was submitted held and released says JobHeldUser for good.
        failed_node: The node whose failure ended it (from Slurm 23.02).
        out_of_memory: Whether the job or one of its steps was ended for memory; the job alone may only say FAILED.
        job_name: Its name.
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
    exit_code: int | None = None
    exit_signal: int | None = None
    derived_exit_code: int | None = None
    derived_exit_signal: int | None = None
    restarts: int | None = None
    reason: str | None = None
    failed_node: str | None = None
    out_of_memory: bool = False
    job_name: str | None = None

    @property
    def key(self) -> AttemptKey:
        """The attempt's identity, which is also Slurm's (a job id is used once in a second).

        Neither Start nor JobIDRaw nor DBIndex would do: a waiting array is one record, and a task gets its own only on
        starting.
        """
        return AttemptKey(self.job_id, self.submit_s)

    @property
    def queue_wait_s(self) -> int | None:
        """start_s - submit_s: how long its user waited, a hold, a dependency or the delay after a requeue included.

        Submit, start and end part the life of a job, so the waits and run times of its attempts add up to it, but for
        the few seconds that a requeue takes. Slurm's own "Planned" is start_s - eligible_s.
        """
        return None if self.start_s is None or self.submit_s is None else self.start_s - self.submit_s

    @property
    def gpu_hours(self) -> float | None:
        """alloc_gpus * elapsed_s / 3600 until now; 0 before it starts, None where GPUs are not accounted."""
        if self.start_s is None:
            return 0.0
        return None if self.alloc_gpus is None or self.elapsed_s is None else self.alloc_gpus * self.elapsed_s / 3600

    @property
    def counts_gpus(self) -> bool:
        """Whether the site accounts GPUs, as far as this attempt tells."""
        return self.start_s is None or self.alloc_gpus is not None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return {**asdict(self), "state": self.state.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> AccountingRow:
        """The inverse of to_json, for rows of other versions too: unknown keys are left out, missing ones are None."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        return cls(**{**known, "state": parse_state(known.get("state", ""))})


def attempts_by_job(rows: Iterable[AccountingRow]) -> dict[str, tuple[AccountingRow, ...]]:
    """Each job's attempts, the first one first."""
    jobs: dict[str, list[AccountingRow]] = {}
    for row in rows:
        jobs.setdefault(row.job_id, []).append(row)
    return {job_id: tuple(sorted(own, key=lambda row: row.submit_s or 0)) for job_id, own in jobs.items()}


def merge_history(old_rows: Iterable[AccountingRow], new_rows: Iterable[AccountingRow]) -> tuple[AccountingRow, ...]:
    """What is known of every attempt, from rows seen earlier and rows seen now.

    Args:
        old_rows: Seen earlier, oldest first.
        new_rows: Seen now.

    Returns:
        One row for each attempt, in order of appearance. The newer one counts, but what sacct forgets is kept: attempts
        that it no longer lists, and what their steps told (sites purge steps before jobs).
    """
    known: dict[AttemptKey, AccountingRow] = {}
    for row in (*old_rows, *new_rows):
        known[row.key] = _newest(known[row.key], row) if row.key in known else row
    return tuple(known.values())


def _newest(earlier: AccountingRow, later: AccountingRow) -> AccountingRow:
    """Both rows of one attempt as one."""
    # An attempt never goes back. sacct's record of a waiting array does: it still lists tasks, as PENDING or even as
    # CANCELLED, for some seconds after they have started and have records of their own.
    if _progress(earlier) > _progress(later):
        earlier, later = later, earlier
    return replace(
        later,
        max_rss_bytes=earlier.max_rss_bytes if later.max_rss_bytes is None else later.max_rss_bytes,
        out_of_memory=earlier.out_of_memory or later.out_of_memory,
    )


def _progress(row: AccountingRow) -> tuple[bool, bool]:
    """How far the attempt has come; a start counts more than an end, which one cancelled in the queue has as well."""
    return row.start_s is not None, row.end_s is not None
