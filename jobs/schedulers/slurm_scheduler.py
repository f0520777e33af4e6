"""Slurm as a scheduler: what sacct and squeue answer, joined with the folders of the runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from disttrain.errors import UserError
from disttrain.records.lifecycle.stacks import STACKS_SIGNAL
from jobs.planning.plan import Plan
from jobs.schedulers.answers import Answers, Question, age_text, save_rows
from jobs.schedulers.conclude import MAY_RETURN, Conclusion, Evidence, conclude
from jobs.schedulers.scheduler import Note, OnSent, Sent
from jobs.slurm.attempts import AccountingRow, attempts_by_job, attempts_of, merge_history
from jobs.slurm.control import cancel, compact_ids, signal_ranks
from jobs.slurm.interrupted import finish_interrupted
from jobs.slurm.sacct import query_sacct
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import cluster_name, query_squeue
from jobs.slurm.submit import require_slurm, send_to_slurm
from jobs.storage.ledger import Job, Ledger
from jobs.storage.run_facts import RunFacts, has_summary, read_facts
from jobs.storage.sweep_folder import SweepFolder


class SlurmScheduler:
    """Slurm on the cluster of this host.

    Args:
        environ: The environment of Slurm's commands.
    """

    action = "submitting"
    poll_s = 30.0  # sites ask for at most one or two questions a minute
    has_accounting = True

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def require(self, cluster_name: str) -> None:
        require_slurm(cluster_name)

    def finish_interrupted(self, folder: SweepFolder, ledger: Ledger, note: Note) -> Ledger:
        return finish_interrupted(folder, ledger, self._environ, note)

    def send(self, plan: Plan, overrides: Mapping[str, str], on_sent: OnSent) -> Sent:
        unsent, reason = send_to_slurm(plan, overrides, time.time, on_sent)
        return Sent(None, frozenset(unsent), reason)

    def check_here(self, jobs: Sequence[Job]) -> None:
        here = cluster_name(environ=self._environ) if any(job.cluster for job in jobs) else None
        for job in jobs:
            if not job.may_be_on(here):
                message = f"job {job.job_id} is on cluster {job.cluster}; the Slurm of this host is {here}"
                raise UserError(message, hint=f"run the command on a login node of {job.cluster}")

    def cancel(self, jobs: Sequence[Job], *, only_pending: bool = False) -> None:
        if jobs:
            job_ids = compact_ids(job.job_id for job in jobs)
            cancel(job_ids, environ=self._environ, only_pending=only_pending)

    def request_stacks(self, folder: SweepFolder, job: Job) -> None:
        signal_ranks(job.job_id, STACKS_SIGNAL, environ=self._environ)

    def known_s(self, folder: SweepFolder) -> float | None:
        return folder.last_query_s()

    def has_news(self, folder: SweepFolder) -> bool:
        return True

    def ask(self, question: Question) -> Answers:
        """The answers of sacct and, if a run has not ended by sacct, of squeue."""
        folder, job_name, ledger, run_ids = question.folder, question.job_name, question.ledger, question.run_ids
        saved = rows_named(question.saved, job_name)
        answers = Answers(attempts_by_job(saved))
        here = None
        if _unfinished(run_ids, ledger, answers) and any(job.cluster for job in ledger.all_jobs()):
            here = cluster_name(environ=self._environ)
        jobs = [job for job in ledger.all_jobs() if job.may_be_on(here)]
        user_id = folder.owner_id()
        notices: list[str] = []
        unavailable: AccountingUnavailable | None = None
        attempts = answers.attempts
        try:
            since_s = min((job.submitted_s for job in jobs), default=None)
            rows = query_sacct([job.job_id for job in jobs], environ=self._environ, since_s=since_s)
        except AccountingUnavailable as error:
            unavailable = error
        else:
            ours = rows_named(rows, job_name)
            ours = tuple(row for row in ours if None in (row.user_id, user_id) or row.user_id == user_id)
            merged = merge_history(saved, ours)
            attempts = attempts_by_job(merged)
            if folder.is_owner():
                notices += save_rows(folder, saved, merged)
        is_saved = not notices
        answers = replace(answers, attempts=attempts, here=here, is_current=unavailable is None, is_saved=is_saved)
        if _unfinished(run_ids, ledger, answers):
            # After sacct: a job that ends between both is then finished by squeue, or not listed and finished next
            # time.
            try:
                answers = replace(answers, queue=query_squeue(job_name, user_id=user_id, environ=self._environ))
            except AccountingUnavailable as error:
                if unavailable is not None:
                    notices.append(str(error))
        if unavailable is not None:
            notices.append(f"{unavailable}; {_without_sacct(folder, answers)}")
        return replace(answers, notices=tuple(notices))

    def conclude(self, question: Question, answers: Answers) -> dict[str, Conclusion]:
        folder, ledger = question.folder, question.ledger
        is_owner = folder.is_owner()
        now_s = time.time() if answers.asked_s is None else answers.asked_s
        conclusions = {}
        for run_id in question.run_ids:
            jobs = ledger.jobs.get(run_id, ())
            attempts = attempts_of(jobs[-1].job_id, answers.attempts) if jobs else ()
            evidence = Evidence(
                jobs, attempts, answers.queue, _facts(folder.run(run_id), attempts) if jobs else RunFacts(), now_s,
                answers.is_current, is_visible=is_owner, here=answers.here, is_cancelled=run_id in ledger.cancelled,
                is_skipped=run_id in ledger.skipped,
            )  # fmt: skip
            conclusions[run_id] = conclude(evidence)
        return conclusions


def _without_sacct(folder: SweepFolder, answers: Answers) -> str:
    """Where the states are from if sacct does not answer."""
    asked_s = folder.last_query_s()
    last = "sacct has never answered"
    if asked_s is not None:
        last = f"its last answer is {age_text(max(0.0, time.time() - asked_s))} old"
    if answers.queue is None:
        return f"the states are the last known ones, and {last}"
    return f"squeue says what waits and runs, and the runs' own files what has ended; {last}"


def _unfinished(run_ids: Sequence[str], ledger: Ledger, answers: Answers) -> bool:
    """Whether a run may still wait or run, by what the accounting has answered."""
    for run_id in run_ids:
        for job in ledger.jobs.get(run_id, ())[-1:]:
            attempts = attempts_of(job.job_id, answers.attempts)
            if not attempts or not attempts[-1].state.is_finished:
                return True
            if attempts[-1].state in MAY_RETURN:
                return True
    return False


def rows_named(rows: Sequence[AccountingRow], job_name: str) -> tuple[AccountingRow, ...]:
    """The rows of jobs of this name: numbers of jobs are used again, and other clusters have them too."""
    return tuple(row for row in rows if row.job_name in (None, job_name))


def _facts(run_dir: Path, attempts: Sequence[AccountingRow]) -> RunFacts:
    """What is needed of a run's folder: nothing, if the accounting has seen a failure."""
    if not attempts or not attempts[-1].state.is_finished:
        return read_facts(run_dir)
    if attempts[-1].state.is_success:
        return RunFacts(has_summary(run_dir))
    return RunFacts()
