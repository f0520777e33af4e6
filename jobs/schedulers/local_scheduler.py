"""The queue on this machine as a scheduler. It writes the states of its runs itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from disttrain.records.lifecycle.stacks import STACKS_SIGNAL
from jobs.local.local_queue import send_to_local
from jobs.local.local_run import signal_ranks
from jobs.local.queue_process import is_queue_alive
from jobs.planning.plan import Plan
from jobs.schedulers.answers import Answers, Question
from jobs.schedulers.conclude import Conclusion, conclude_local
from jobs.schedulers.scheduler import Note, OnSent, Sent
from jobs.slurm.attempts import attempts_by_job, attempts_of
from jobs.storage.ledger import Job, Ledger, QueueProcess
from jobs.storage.run_facts import read_facts
from jobs.storage.sweep_folder import SweepFolder


class LocalScheduler:
    """The queue on this machine.

    Args:
        max_ranks: The number of ranks at a time; None for the number of GPUs or cores.
        in_process: Whether this process works through the queue. If not, a background process does.
    """

    action = "submitting"
    poll_s = 1.0
    has_accounting = False

    def __init__(self, max_ranks: int | None = None, *, in_process: bool = False) -> None:
        self._max_ranks = max_ranks
        self._in_process = in_process

    def require(self, cluster_name: str) -> None:
        """This machine needs nothing else."""

    def finish_interrupted(self, folder: SweepFolder, ledger: Ledger, note: Note) -> Ledger:
        return ledger  # a queue starts no run before the ledger has it

    def send(self, plan: Plan, overrides: Mapping[str, str], on_sent: OnSent) -> Sent:
        if not plan.runs:
            return Sent()
        queue = send_to_local(plan, overrides, self._max_ranks, time.time, in_process=self._in_process)
        return Sent(queue.run if queue else None)

    def check_here(self, jobs: Sequence[Job]) -> None:
        """The ledger reaches a queue on any machine."""

    def cancel(self, jobs: Sequence[Job], *, only_pending: bool = False) -> None:
        """The queue finds the cancellation in the ledger, and ends these runs."""

    def request_stacks(self, folder: SweepFolder, job: Job) -> None:
        signal_ranks(folder.logs / job.job_id, STACKS_SIGNAL)

    def known_s(self, folder: SweepFolder) -> float | None:
        return time.time()

    def has_news(self, folder: SweepFolder) -> bool:
        return True

    def ask(self, question: Question) -> Answers:
        return Answers(attempts_by_job(question.saved))

    def conclude(self, question: Question, answers: Answers) -> dict[str, Conclusion]:
        folder, ledger = question.folder, question.ledger
        queue_lives: dict[QueueProcess | None, bool] = {None: True}
        conclusions = {}
        for run_id in question.run_ids:
            jobs = ledger.jobs.get(run_id, ())
            queue = jobs[-1].queue if jobs else None
            if queue is not None and queue not in queue_lives:
                queue_lives[queue] = is_queue_alive(queue, folder.logs)
            conclusions[run_id] = conclude_local(
                jobs,
                attempts_of(jobs[-1].job_id, answers.attempts) if jobs else (),
                read_facts(folder.run(run_id)),
                queue_lives=queue_lives[queue],
                is_cancelled=run_id in ledger.cancelled,
                is_skipped=run_id in ledger.skipped,
            )
        return conclusions
