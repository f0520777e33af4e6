"""Slurm's job states, and the phase of a run in each of them."""

from __future__ import annotations

import functools
from enum import Enum, StrEnum


class JobPhase(Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    UNKNOWN = "unknown"


class State(StrEnum):
    """A job or step state, in Slurm's own long form.

    sacct prints the base states, and REQUEUED, RESIZING and REVOKED. squeue also prints the others, which are flags on
    top of a base state. A word that is missing here becomes UNKNOWN, which is in no phase.
    """

    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    DEADLINE = "DEADLINE"
    EXPEDITING = "EXPEDITING"
    FAILED = "FAILED"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    NODE_FAIL = "NODE_FAIL"
    NOT_SUBMITTED = "NOT_SUBMITTED"  # not a Slurm state: planned, and never submitted or refused
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PENDING = "PENDING"
    POWER_UP_NODE = "POWER_UP_NODE"
    PREEMPTED = "PREEMPTED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    REVOKED = "REVOKED"
    RUNNING = "RUNNING"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    SUSPENDED = "SUSPENDED"
    TIMEOUT = "TIMEOUT"
    UPDATE_DB = "UPDATE_DB"
    UNKNOWN = "UNKNOWN"

    @property
    def phase(self) -> JobPhase:
        """Where a job in this state is in its life."""
        return _PHASES[self]

    @property
    def is_pending(self) -> bool:
        """Whether the job waits to start, for the first time or again."""
        return self.phase is JobPhase.PENDING

    @property
    def is_finished(self) -> bool:
        """Whether the attempt has ended; if Slurm requeues the job by itself, another attempt may follow."""
        return self.phase is JobPhase.FINISHED

    @property
    def is_success(self) -> bool:
        """Whether the attempt ran to its end and exited with 0."""
        return self is State.COMPLETED


_PHASES: dict[State, JobPhase] = {
    State.PENDING: JobPhase.PENDING,
    State.NOT_SUBMITTED: JobPhase.PENDING,
    State.EXPEDITING: JobPhase.PENDING,
    # A requeue closes the record as REQUEUED. The new PENDING record comes seconds later, so the job has not ended.
    State.REQUEUED: JobPhase.PENDING,
    State.REQUEUE_FED: JobPhase.PENDING,
    # Held until a user releases it: after a special exit, too many requeues, a lost reservation or a failed launch.
    State.REQUEUE_HOLD: JobPhase.PENDING,
    State.SPECIAL_EXIT: JobPhase.PENDING,
    State.RESV_DEL_HOLD: JobPhase.PENDING,
    State.LAUNCH_FAILED: JobPhase.PENDING,
    State.RECONFIG_FAIL: JobPhase.PENDING,
    State.RUNNING: JobPhase.RUNNING,
    # Nodes are allocated, and charged, while they boot and while the job's last processes and files are removed.
    State.CONFIGURING: JobPhase.RUNNING,
    State.POWER_UP_NODE: JobPhase.RUNNING,
    State.COMPLETING: JobPhase.RUNNING,
    State.STAGE_OUT: JobPhase.RUNNING,
    State.RESIZING: JobPhase.RUNNING,
    State.SIGNALING: JobPhase.RUNNING,
    State.STOPPED: JobPhase.RUNNING,
    State.SUSPENDED: JobPhase.RUNNING,
    State.UPDATE_DB: JobPhase.RUNNING,
    State.COMPLETED: JobPhase.FINISHED,
    State.BOOT_FAIL: JobPhase.FINISHED,
    State.CANCELLED: JobPhase.FINISHED,
    State.DEADLINE: JobPhase.FINISHED,
    State.FAILED: JobPhase.FINISHED,
    State.NODE_FAIL: JobPhase.FINISHED,
    State.OUT_OF_MEMORY: JobPhase.FINISHED,
    State.PREEMPTED: JobPhase.FINISHED,
    State.REVOKED: JobPhase.FINISHED,
    State.TIMEOUT: JobPhase.FINISHED,
    State.UNKNOWN: JobPhase.UNKNOWN,
}


@functools.lru_cache(maxsize=1000)  # a table of sacct has few different ones in very many rows
def parse_state(text: str) -> State:
    """Reads the state that sacct or squeue printed.

    Args:
        text: The state, for a cancelled job possibly followed by the user who cancelled it.

    Returns:
        The state named by the first word; UNKNOWN for any other word and for an empty text.

    Example:
        >>> parse_state("CANCELLED by 1000")
        <State.CANCELLED: 'CANCELLED'>
        >>> parse_state("HIBERNATING")
        <State.UNKNOWN: 'UNKNOWN'>
    """
    word, *_ = text.upper().split() or [""]
    return State.__members__.get(word, State.UNKNOWN)
