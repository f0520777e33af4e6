"""The current status of a sweep: the answers of Slurm, saved in the sweep's folder and joined with the records."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disttrain.records.atomic_write import write_text
from disttrain.records.json_values import to_json
from jobs.local.local_queue import is_queue_alive
from jobs.planning.cluster_profile import LOCAL
from jobs.results.collect import join
from jobs.results.conclude import MAY_RETURN, Conclusion, Evidence, conclude, conclude_local
from jobs.results.result import Result
from jobs.results.run_records import RunFacts, has_summary, read_facts, read_run
from jobs.slurm.attempts import AccountingRow, attempts_by_job, attempts_of, merge_history
from jobs.slurm.sacct import query_sacct
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob, cluster_name, query_squeue
from jobs.slurm.states import State
from jobs.storage.ledger import LEDGER_NAME, Ledger, QueueProcess, append_lines, read_ledger, read_numbered_lines
from jobs.storage.sweep_folder import SweepFolder


@dataclass(frozen=True)
class Status:
    """Every run of a sweep, and notices about how reliable these states are."""

    results: tuple[Result, ...]
    notices: tuple[str, ...]
    is_current: bool = True  # False if the accounting did not answer: the states are from an earlier answer
    is_saved: bool = True  # False if the answer of the accounting could not be saved; a notice says why


def read_status(folder: SweepFolder, environ: Mapping[str, str]) -> Status:
    """The state of every run, from one sacct call and, if a run has not ended, one squeue call.

    sacct's answer is saved in accounting.jsonl, if this user owns the folder, because sites purge their accounting.

    Args:
        folder: The folder of a submitted sweep.
        environ: The environment for sacct and squeue.
    """
    ledger = read_ledger(folder.path)
    planned = folder.planned_runs()
    run_ids = [run["run_id"] for run in planned]
    answers = _answers(folder, ledger, run_ids, environ)
    notices = (*answers.damage, *answers.notices, *_unsubmitted_notice(planned, ledger))
    conclusions = _conclude(folder, run_ids, ledger, answers)
    records = {run_id: read_run(folder.run(run_id)) for run_id in run_ids}
    local = folder.cluster_name == LOCAL
    results = join(planned, ledger, answers.attempts, records, conclusions, local=local)
    return Status(results, notices, answers.is_current, answers.is_saved)


def _unsubmitted_notice(planned: Sequence[Mapping[str, Any]], ledger: Ledger) -> tuple[str, ...]:
    """A notice if the ledger has no job of some runs. With damaged lines, they may have been submitted."""
    without_job = {run["run_id"] for run in planned} - set(ledger.jobs)
    if without_job and ledger.damaged_lines:
        number = f"{len(without_job)} of {len(planned)} runs"
        return (f"{number} have no job in the readable lines of {LEDGER_NAME}; they may have been submitted",)
    unsubmitted = without_job - set(ledger.unconfirmed)
    if not unsubmitted:
        return ()
    return (f"{len(unsubmitted)} of {len(planned)} runs were never submitted; sweep submit submits them",)


@dataclass(frozen=True)
class States:
    """The state of some runs by run id, notices, and the damage in the ledger and the accounting, a line for each."""

    by_run: Mapping[str, State]
    notices: tuple[str, ...] = ()
    damage: tuple[str, ...] = ()


def read_states(folder: SweepFolder, run_ids: Sequence[str], ledger: Ledger, environ: Mapping[str, str]) -> States:
    """The state of each run, from the same calls as in `read_status`. plan.json need not have the runs."""
    answers = _answers(folder, ledger, run_ids, environ)
    conclusions = _conclude(folder, run_ids, ledger, answers)
    states = {run_id: conclusion.state for run_id, conclusion in conclusions.items()}
    return States(states, answers.notices, answers.damage)


@dataclass(frozen=True)
class _Answers:
    """What the scheduler has answered, now and before; the last two fields are those of `Status`.

    Attributes:
        attempts: The attempts of each job by its id, the latest last.
        damage: The damage in the ledger and in the saved rows, a line for each file.
        notices: Notices for the user.
        queue: What squeue lists, by job id; None if it was not asked, or did not answer.
        here: The name of the cluster that was asked; None if that is not known.
    """

    attempts: Mapping[str, tuple[AccountingRow, ...]]
    damage: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    queue: Mapping[str, QueuedJob] | None = None
    here: str | None = None
    is_current: bool = True
    is_saved: bool = True


def _answers(folder: SweepFolder, ledger: Ledger, run_ids: Sequence[str], environ: Mapping[str, str]) -> _Answers:
    """What Slurm answers, or what the local queue has written, about all jobs in the ledger."""
    every_saved, damaged_rows = _saved_rows(folder.accounting_file)
    job_name = folder.job_name()
    saved = _named(every_saved, job_name)
    damage = (
        *_damage_notice(LEDGER_NAME, ledger.damaged_lines, "jobs may be missing"),
        *_damage_notice(folder.accounting_file.name, damaged_rows, "states may be missing"),
    )
    answers = _Answers(attempts_by_job(saved), damage)
    if folder.cluster_name != LOCAL:
        answers = _ask_slurm(folder, job_name, ledger, saved, answers, run_ids, environ)
    if ledger.unconfirmed and not ledger.damaged_lines:
        what_next = f"squeue --name={job_name} shows which of its jobs exist"
        if ledger.open_tokens:
            what_next = "its jobs are on hold; sweep submit sends its runs again"
        notice = f"a submission of {len(ledger.unconfirmed)} runs was interrupted: {what_next}"
        answers = replace(answers, notices=(*answers.notices, notice))
    return answers


def _ask_slurm(
    folder: SweepFolder,
    job_name: str,
    ledger: Ledger,
    saved: Sequence[AccountingRow],
    known: _Answers,
    run_ids: Sequence[str],
    environ: Mapping[str, str],
) -> _Answers:
    """The answers of sacct and, if a run has not ended by sacct, of squeue."""
    here = None
    if _unfinished(run_ids, ledger, known) and any(job.cluster for job in ledger.all_jobs()):
        here = cluster_name(environ=environ)
    jobs = [job for job in ledger.all_jobs() if None in (here, job.cluster) or job.cluster == here]
    user_id = folder.owner_id()
    notices: list[str] = []
    unavailable: AccountingUnavailable | None = None
    attempts = known.attempts
    try:
        since_s = min((job.submitted_s for job in jobs), default=None)
        rows = _named(query_sacct([job.job_id for job in jobs], environ=environ, since_s=since_s), job_name)
    except AccountingUnavailable as error:
        unavailable = error
    else:
        merged = merge_history(saved, [row for row in rows if None in (row.user_id, user_id) or row.user_id == user_id])
        attempts = attempts_by_job(merged)
        if folder.is_owner():
            notices += _save(folder, saved, merged)
    is_saved = not notices
    answers = replace(known, attempts=attempts, here=here, is_current=unavailable is None, is_saved=is_saved)
    if _unfinished(run_ids, ledger, answers):
        # After sacct: a job that ends between both is then finished by squeue, or not listed and finished next time.
        try:
            queue = query_squeue(job_name, user_id=user_id, environ=environ)
            answers = replace(answers, queue=queue)
        except AccountingUnavailable as error:
            if unavailable is not None:
                notices.append(str(error))
    if unavailable is not None:
        notices.append(f"{unavailable}; {_without_sacct(folder, answers)}")
    return replace(answers, notices=tuple(notices))


def _without_sacct(folder: SweepFolder, answers: _Answers) -> str:
    """Where the states are from if sacct does not answer."""
    asked_s = folder.last_query_s()
    last = "sacct has never answered"
    if asked_s is not None:
        last = f"its last answer is {age_text(max(0.0, time.time() - asked_s))} old"
    if answers.queue is None:
        return f"the states are the last known ones, and {last}"
    return f"squeue says what waits and runs, and the runs' own files what has ended; {last}"


def _unfinished(run_ids: Sequence[str], ledger: Ledger, answers: _Answers) -> bool:
    """Whether a run may still wait or run, by what the accounting has answered."""
    for run_id in run_ids:
        for job in ledger.jobs.get(run_id, ())[-1:]:
            attempts = attempts_of(job.job_id, answers.attempts)
            if not attempts or not attempts[-1].state.is_finished:
                return True
            if attempts[-1].state in MAY_RETURN:
                return True
    return False


def _named(rows: Sequence[AccountingRow], job_name: str) -> tuple[AccountingRow, ...]:
    """The rows of jobs of this name: numbers of jobs are used again, and other clusters have them too."""
    return tuple(row for row in rows if row.job_name in (None, job_name))


def _conclude(folder: SweepFolder, run_ids: Sequence[str], ledger: Ledger, answers: _Answers) -> dict[str, Conclusion]:
    """The conclusion on each run. The folder of a run is read only if nothing else says what became of it."""
    is_owner, now_s = folder.is_owner(), time.time()
    queue_lives: dict[QueueProcess | None, bool] = {None: True}
    conclusions = {}
    for run_id in run_ids:
        jobs = ledger.jobs.get(run_id, ())
        attempts = attempts_of(jobs[-1].job_id, answers.attempts) if jobs else ()
        facts = _facts(folder.run(run_id), attempts) if jobs else RunFacts()
        if folder.cluster_name == LOCAL:
            queue = jobs[-1].queue if jobs else None
            if queue is not None and queue not in queue_lives:
                queue_lives[queue] = is_queue_alive(queue)
            conclusions[run_id] = conclude_local(jobs, attempts, facts, queue_lives=queue_lives[queue])
            continue
        evidence = Evidence(
            jobs, attempts, answers.queue, facts, now_s, answers.is_current, is_visible=is_owner, here=answers.here
        )
        conclusions[run_id] = conclude(evidence)
    return conclusions


def _facts(run_dir: Path, attempts: Sequence[AccountingRow]) -> RunFacts:
    """What is needed of a run's folder: nothing, if the accounting has seen a failure."""
    if not attempts or not attempts[-1].state.is_finished:
        return read_facts(run_dir)
    if attempts[-1].state.is_success:
        return RunFacts(has_summary(run_dir))
    return RunFacts()


def _damage_notice(name: str, numbers: Sequence[int], consequence: str) -> tuple[str, ...]:
    """A notice if a file of the sweep has damaged lines."""
    if not numbers:
        return ()
    lines = f"line {numbers[0]} of {name} is damaged"
    if len(numbers) > 1:
        lines = f"{len(numbers)} lines of {name} are damaged, the first is line {numbers[0]}"
    return (f"{lines}: {consequence}",)


@dataclass(frozen=True)
class LastKnown:
    """The states of a sweep's runs by the last answer of Slurm.

    Attributes:
        states: The state of each run that the sweep file still has, by run id.
        known_s: The time of that answer, in seconds since 1970; None if Slurm was never asked.
    """

    states: Mapping[str, State]
    known_s: float | None


def last_known(folder: SweepFolder) -> LastKnown:
    """The states of a sweep's runs, without a question to Slurm."""
    ledger, (rows, _) = read_ledger(folder.path), _saved_rows(folder.accounting_file)
    known_s = folder.last_query_s()
    if folder.cluster_name == LOCAL:
        known_s = time.time()  # the queue itself writes the states
    present = [run["run_id"] for run in folder.planned_runs() if not run.get("dropped", False)]
    conclusions = _conclude(folder, present, ledger, _Answers(attempts_by_job(rows)))
    return LastKnown({run_id: conclusion.state for run_id, conclusion in conclusions.items()}, known_s)


def _save(folder: SweepFolder, saved: Sequence[AccountingRow], merged: Sequence[AccountingRow]) -> tuple[str, ...]:
    """Saves what sacct answered. A full disk or a read-only folder gives a notice: the states only need to be read."""
    # Only new rows: the file grows with the events, not with the number of queries during a run.
    known = {_without_elapsed(row) for row in saved}
    new = [row for row in merged if _without_elapsed(row) not in known]
    try:
        if new:
            append_lines(folder.accounting_file, [to_json(row.to_json()) for row in new])
        write_text(folder.query_time_file, f"{time.time():.0f}\n")
    except OSError as error:
        return (f"what was seen could not be saved: {error.filename}: {error.strerror}",)
    return ()


def _without_elapsed(row: AccountingRow) -> AccountingRow:
    """The row; of an unfinished job without elapsed_s, which changes with every query."""
    if row.state.is_finished:
        return row
    return replace(row, elapsed_s=None)


def _saved_rows(path: Path) -> tuple[tuple[AccountingRow, ...], list[int]]:
    """The rows of accounting.jsonl, and the numbers of its damaged lines."""
    rows, damaged = [], []
    for number, values in read_numbered_lines(path):
        try:
            if values is None:
                raise ValueError("it is no JSON object")
            rows.append(AccountingRow.from_json(values))
        except ValueError:
            damaged.append(number)
    return merge_history((), rows), damaged


def age_text(age_s: float) -> str:
    """An age in its largest unit.

    Example:
        >>> age_text(5), age_text(150), age_text(7300), age_text(200000)
        ('5 s', '2 min', '2 h', '2 days')
    """
    for unit, seconds in (("days", 86400), ("h", 3600), ("min", 60)):
        if age_s >= (2 * seconds if unit == "days" else seconds):
            return f"{age_s // seconds:.0f} {unit}"
    return f"{age_s:.0f} s"
