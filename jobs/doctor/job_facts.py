"""What is known of one job of the doctor: how it waited and ended, and the reports of its ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from disttrain.records.job_files.doctor_reports import RankReport
from jobs.planning.allocation import Allocation
from jobs.slurm.states import State

# What Slurm says of a job that will not start, however long it waits.
_NEVER = re.compile(
    r"(?<!Run)Minutes|PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|PartitionDown|PartitionInactive|BadConstraints"
    r"|Invalid|NotAllowed|JobHeld|PerJob|DependencyNeverSatisfied"
)


@dataclass(frozen=True)
class JobFacts:
    """One job, as the login node saw it. Times are in seconds since 1970, by the clock of the login node.

    Attributes:
        allocation: Its allocation.
        job_id: Its id; empty if it was not sent.
        refusal: Why it was not sent; None if it was.
        started: Whether it has started.
        ended: Whether it has ended, or was cancelled.
        state: Its last known state.
        reason: Slurm's word for why it waited.
        waited_s: How long it waited.
        began_s: The last time at which it was seen to wait.
        nodes: The nodes on which it ran.
        reports: The reports of its ranks, by rank.
        seen_s: When each report was first seen with its time, by rank.
        log_line: The last line of the log of a rank without a report, or of rank 0; None if there is none.
        shares_devices: Whether several ranks compute on one GPU or on the same cores.
    """

    allocation: Allocation
    job_id: str = ""
    refusal: str | None = None
    started: bool = False
    ended: bool = False
    state: State | None = None
    reason: str = ""
    waited_s: float = 0.0
    began_s: float = 0.0
    nodes: tuple[str, ...] = ()
    reports: Mapping[int, RankReport] = field(default_factory=dict)
    seen_s: Mapping[int, float] = field(default_factory=dict)
    log_line: str | None = None
    shares_devices: bool = False

    @property
    def is_open(self) -> bool:
        """Whether Slurm may still have it: it has not ended, or its sbatch gave no id."""
        return not self.job_id or not self.ended

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        """The ranks without a report."""
        return tuple(rank for rank in range(self.allocation.world_size) if rank not in self.reports)

    @property
    def silent_nodes(self) -> tuple[str, ...]:
        """The nodes of the job from which no report came."""
        hosts = {report.host.partition(".")[0] for report in self.reports.values()}
        return tuple(node for node in self.nodes if node.partition(".")[0] not in hosts)


def never_starts(reason: str) -> bool:
    """Whether a job that waits for this reason of Slurm waits for ever. RunMinutes are those of jobs that run now.

    Example:
        >>> never_starts("AssocGrpGRESMinutes"), never_starts("AssocGrpGRESRunMinutes"), never_starts("Resources")
        (True, False, False)
    """
    return _NEVER.search(reason) is not None
