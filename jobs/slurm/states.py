"""The vocabulary of Slurm's job states: one table, and what each word means for a run."""

from __future__ import annotations

from enum import Enum, StrEnum


class Phase(Enum):
    """Where a job is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    UNKNOWN = "unknown"


class State(StrEnum):
    """A job or step state, in Slurm's own long form.

    sacct prints the base states, and REQUEUED, RESIZING and REVOKED; squeue prints the others as well, which are flags
    over a base state. A word that is missing here reads as UNKNOWN, which is in no phase.
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
    NOT_SUBMITTED = "NOT_SUBMITTED"  # not Slurm's: planned, and never sent or refused
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
    def phase(self) -> Phase:
        """Where a job in this state is in its life."""
        return _PHASES[self]

    @property
    def is_pending(self) -> bool:
        """Whether the job waits to start, for the first time or again."""
        return self.phase is Phase.PENDING

    @property
    def is_finished(self) -> bool:
        """Whether the attempt is over for good; where Slurm requeues by itself, another attempt may follow."""
        return self.phase is Phase.FINISHED

    @property
    def is_success(self) -> bool:
        """Whether the attempt ran to its end and exited with 0."""
        return self is State.COMPLETED


_PHASES: dict[State, Phase] = {
    State.PENDING: Phase.PENDING,
    State.NOT_SUBMITTED: Phase.PENDING,
    State.EXPEDITING: Phase.PENDING,
    # A requeue closes the record as REQUEUED; the new PENDING record comes seconds later, so this is not the end.
    State.REQUEUED: Phase.PENDING,
    State.REQUEUE_FED: Phase.PENDING,
    # Held until somebody releases it: after a special exit, too many requeues, a lost reservation, a failed launch.
    State.REQUEUE_HOLD: Phase.PENDING,
    State.SPECIAL_EXIT: Phase.PENDING,
    State.RESV_DEL_HOLD: Phase.PENDING,
    State.LAUNCH_FAILED: Phase.PENDING,
    State.RECONFIG_FAIL: Phase.PENDING,
    State.RUNNING: Phase.RUNNING,
    # Nodes are allocated, and charged, while they boot and while the job's last processes and files are cleared away.
    State.CONFIGURING: Phase.RUNNING,
    State.POWER_UP_NODE: Phase.RUNNING,
    State.COMPLETING: Phase.RUNNING,
    State.STAGE_OUT: Phase.RUNNING,
    State.RESIZING: Phase.RUNNING,
    State.SIGNALING: Phase.RUNNING,
    State.STOPPED: Phase.RUNNING,
    State.SUSPENDED: Phase.RUNNING,
    State.UPDATE_DB: Phase.RUNNING,
    State.COMPLETED: Phase.FINISHED,
    State.BOOT_FAIL: Phase.FINISHED,
    State.CANCELLED: Phase.FINISHED,
    State.DEADLINE: Phase.FINISHED,
    State.FAILED: Phase.FINISHED,
    State.NODE_FAIL: Phase.FINISHED,
    State.OUT_OF_MEMORY: Phase.FINISHED,
    State.PREEMPTED: Phase.FINISHED,
    State.REVOKED: Phase.FINISHED,
    State.TIMEOUT: Phase.FINISHED,
    State.UNKNOWN: Phase.UNKNOWN,
}


def parse_state(text: str) -> State:
    """Read the state that sacct or squeue printed.

    Args:
        text: The state, perhaps with who cancelled the job behind it.

    Returns:
        The state named by the first word; UNKNOWN for a word that is not in the vocabulary, or none.

    Example:
        >>> parse_state("CANCELLED by 1000")
        <State.CANCELLED: 'CANCELLED'>
        >>> parse_state("HIBERNATING")
        <State.UNKNOWN: 'UNKNOWN'>
    """
    word = text.split(maxsplit=1)[0].upper() if text.strip() else ""
    return State.__members__.get(word, State.UNKNOWN)
