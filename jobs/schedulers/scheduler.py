"""What every scheduler does: it sends runs, cancels them, and says what became of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobs.planning.plan import JobGroup, Plan
from jobs.schedulers.answers import Answers, Question
from jobs.schedulers.conclude import Conclusion
from jobs.storage.ledger import Job, Ledger
from jobs.storage.sweep_folder import SweepFolder

Note = Callable[[str], None]
OnSent = Callable[[JobGroup, str], None]  # called after each group, with the id of its job or job array
# Works through a queue in this process, and calls the function again and again.
Work = Callable[[Callable[[], None]], None]


@dataclass(frozen=True)
class Sent:
    """What became of runs that were to be sent.

    Attributes:
        work: What the caller still has to do, after it has released its lock; None if there is nothing.
        unsent: The ids of the runs that were not sent: Slurm accepts no more jobs of this user at present.
        reason: Slurm's word for that limit.
    """

    work: Work | None = None
    unsent: frozenset[str] = frozenset()
    reason: str = ""


class Scheduler(Protocol):
    """Where the runs of one kind of cluster go."""

    action: str  # what it does with the runs that it sends, in a message
    poll_s: float  # the interval between two questions while a command waits
    has_accounting: bool  # whether it accounts jobs: their ids, nodes, waits and GPU-hours

    def require(self, cluster_name: str) -> None:
        """Checks, before any file is written, that this machine can send runs.

        Raises:
            UserError: A program is missing.
        """

    def finish_interrupted(self, folder: SweepFolder, ledger: Ledger, note: Note) -> Ledger:
        """Finishes what interrupted submissions have left, and returns the ledger as it is then."""

    def send(self, plan: Plan, overrides: Mapping[str, str], on_sent: OnSent) -> Sent:
        """Sends every run of the plan; their folders are prepared.

        Args:
            plan: The plan of the runs.
            overrides: The texts of ``--set``, for the ledger.
            on_sent: A function that is called after each group.

        Raises:
            UserError: A group was refused. The groups before it are sent and recorded.
        """

    def check_here(self, jobs: Sequence[Job]) -> None:
        """Checks that these jobs are on the cluster of this host.

        Raises:
            UserError: One is on another.
        """

    def cancel(self, jobs: Sequence[Job], *, only_pending: bool = False) -> None:
        """Ends jobs, waiting or running.

        Args:
            jobs: The jobs.
            only_pending: Whether those that have started continue.

        Raises:
            UserError: They could not be ended.
        """

    def request_stacks(self, folder: SweepFolder, job: Job) -> None:
        """Sends the ranks of a running job the signal on which they write their stacks.

        Raises:
            UserError: They cannot be reached.
        """

    def has_news(self, folder: SweepFolder) -> bool:
        """Whether a question now may have another answer than the last one."""

    def ask(self, question: Question) -> Answers:
        """What is known now of all jobs in the ledger."""

    def conclude(self, question: Question, answers: Answers) -> dict[str, Conclusion]:
        """The conclusion on each run. The folder of a run is read only if nothing else says what became of it."""

    def known_s(self, folder: SweepFolder) -> float | None:
        """The time of the last answer, in seconds since 1970; None if there was none."""
