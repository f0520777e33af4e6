"""The states of the runs of a sweep: asks its scheduler, and concludes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs.planning.cluster import Kind
from jobs.schedulers.answers import Answers, Question, read_saved_rows
from jobs.schedulers.conclude import Conclusion
from jobs.schedulers.local_scheduler import LocalScheduler
from jobs.schedulers.scheduler import Scheduler
from jobs.schedulers.shared_slurm import SharedSlurm
from jobs.schedulers.slurm_scheduler import SlurmScheduler
from jobs.slurm.attempts import attempts_by_job
from jobs.storage.ledger import LEDGER_NAME, Ledger
from jobs.storage.sweep_folder import SweepFolder


def scheduler_for(
    kind: Kind, environ: Mapping[str, str], *, max_ranks: int | None = None, in_process: bool = False
) -> Scheduler:
    """The scheduler of a kind of cluster. The debugger records nothing, so the local one answers for it.

    Args:
        kind: The kind of the cluster.
        environ: The environment of Slurm's commands.
        max_ranks: The number of ranks at a time on this machine; None for the number of GPUs or cores.
        in_process: Whether this process works through a local queue.
    """
    if kind == "slurm":
        return SlurmScheduler(environ)
    return LocalScheduler(max_ranks, in_process=in_process)


def watching_scheduler(kind: Kind, environ: Mapping[str, str]) -> Scheduler:
    """The scheduler for a command that follows a sweep: all that follow it share the answers of Slurm."""
    if kind == "slurm":
        return SharedSlurm(environ)
    return scheduler_for(kind, environ)


@dataclass(frozen=True)
class States:
    """What is known of some runs.

    Attributes:
        conclusions: The conclusion on each run by its id.
        answers: What the scheduler has answered.
        damage: The damage in the ledger and in the saved rows, a line for each file.
    """

    conclusions: Mapping[str, Conclusion]
    answers: Answers = field(default_factory=lambda: Answers({}))
    damage: tuple[str, ...] = ()


def read_states(
    folder: SweepFolder, job_name: str, scheduler: Scheduler, ledger: Ledger, run_ids: Sequence[str]
) -> States:
    """The states of some runs now, from one call of sacct and, if a run has not ended, one of squeue.

    Args:
        folder: The folder of the sweep.
        job_name: The name of its jobs.
        scheduler: Its scheduler.
        ledger: Its ledger.
        run_ids: The runs; plan.json need not have them.
    """
    saved, damaged_rows = read_saved_rows(folder.accounting_file)
    damage = (
        *_damage_notice(LEDGER_NAME, ledger.damaged_lines, "jobs may be missing"),
        *_damage_notice(folder.accounting_file.name, damaged_rows, "states may be missing"),
    )
    question = Question(folder, job_name, ledger, run_ids, saved)
    answers = scheduler.ask(question)
    if ledger.unconfirmed and not ledger.damaged_lines:
        what_next = f"squeue --name={job_name} shows which of its jobs exist"
        if ledger.open_tokens:
            what_next = "its jobs are on hold; sweep submit sends its runs again"
        notice = f"a submission of {len(ledger.unconfirmed)} runs was interrupted: {what_next}"
        answers = replace(answers, notices=(*answers.notices, notice))
    return States(scheduler.conclude(question, answers), answers, damage)


def last_states(
    folder: SweepFolder, job_name: str, scheduler: Scheduler, ledger: Ledger, run_ids: Sequence[str]
) -> States:
    """The states of some runs by the last answer of the scheduler, without a question to it."""
    saved, _ = read_saved_rows(folder.accounting_file)
    answers = Answers(attempts_by_job(saved))
    question = Question(folder, job_name, ledger, run_ids, saved)
    return States(scheduler.conclude(question, answers), answers)


def _damage_notice(name: str, numbers: Sequence[int], consequence: str) -> tuple[str, ...]:
    """A notice if a file of the sweep has damaged lines."""
    if not numbers:
        return ()
    lines = f"line {numbers[0]} of {name} is damaged"
    if len(numbers) > 1:
        lines = f"{len(numbers)} lines of {name} are damaged, the first is line {numbers[0]}"
    return (f"{lines}: {consequence}",)
