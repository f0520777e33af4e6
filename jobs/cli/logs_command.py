"""`sweep logs`: the log of a run, also while it grows."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import OfCluster, OfSweep, Root, RunName
from jobs.cli.shared import sweeps_root

if TYPE_CHECKING:
    from pathlib import Path

    from jobs.schedulers.conclude import Conclusion
    from jobs.schedulers.states import States
    from jobs.storage.job_logs import LogPrinter
    from jobs.storage.sweep_folder import SweepFolder

_POLL_S = 0.5


def logs(
    run: RunName,
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            min=0,
            metavar="RANK",
            help="Rank whose log is printed. Default: the first rank that reported a failure, or 0."
            " With launcher torchrun, the number of a node: its ranks share one log.",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Print what is appended, until the run has ended. Ctrl-C ends it.")
    ] = False,
    sweep: OfSweep = None,
    cluster: OfCluster = None,
    root: Root = None,
) -> None:
    """Print the log of the latest job of a run: stdout and stderr of one rank.

    After a requeue, it has all attempts of the job.
    """
    from jobs.planning.labels import Variation
    from jobs.results.failures.job_log import Tasks
    from jobs.storage.job_logs import LogPrinter
    from jobs.storage.run_lookup import find_runs
    from jobs.storage.sweep_folder import find_folder

    folder = find_folder(sweeps_root(root), sweep, cluster)
    planned = folder.planned_runs()
    (found,) = find_runs(planned, [run])
    name, tasks = Variation(planned).name(found), Tasks.of(found)
    noun = "rank" if tasks.are_ranks else "node"
    if rank is not None and rank >= tasks.count:
        hint = None if tasks.are_ranks else "torchrun starts the ranks: all ranks of a node share one log"
        raise UserError(f"{noun} {rank} of {name}: its {noun}s are 0 to {tasks.count - 1}", where="--rank", hint=hint)
    if folder.logs.is_dir() and not os.access(folder.logs, os.R_OK | os.X_OK):
        raise UserError(f"{str(folder.logs)!r} cannot be read", hint="only the owner of a sweep can open its logs")
    failed = _failed_rank(folder.run(found["run_id"]))
    log = _RunLog(folder, found["run_id"], name, failed or 0 if rank is None else rank, noun)
    printer = LogPrinter(sys.stdout.buffer)
    if follow:
        _follow(log, printer)
        failed = _failed_rank(folder.run(found["run_id"]))
        if rank is None and failed not in (None, log.rank):
            _note(f"{noun} {failed} reported the first failure: sweep logs {found['run_id']} --rank {failed}")
    else:
        paths = log.files(log.latest_job())
        if not paths:
            raise log.missing(log.ask().conclusions[log.run_id])
        if log.is_skipped():
            _note(f"{name} was not sent again, because its smoke run has failed; this is the log of an earlier job")
        printer.print_new(paths)
    if printer.is_empty:
        _note(f"the log of {noun} {log.rank} is empty: {log.files(log.latest_job())[0]}")


def _failed_rank(run_dir: Path) -> int | None:
    """The rank that reported the first failure; None if no rank reported one."""
    from jobs.results.run_records import read_run

    for failure in read_run(run_dir).failures[:1]:
        return failure.rank
    return None


@dataclass(frozen=True)
class _RunLog:
    """The log of one rank, or of the torchrun of a node, in the latest job of a run."""

    folder: SweepFolder
    run_id: str
    name: str
    rank: int
    noun: str

    def latest_job(self) -> str | None:
        """The id of the latest job; None if there is none."""
        from jobs.storage.ledger import read_ledger

        for job in read_ledger(self.folder.path).jobs.get(self.run_id, ())[-1:]:
            return job.job_id
        return None

    def is_skipped(self) -> bool:
        """Whether the run was not sent after its latest job."""
        from jobs.storage.ledger import read_ledger

        return self.run_id in read_ledger(self.folder.path).skipped

    def _smoke_run(self) -> str | None:
        """The smoke run that must succeed before the run starts; None if it waits for none."""
        from jobs.results.failures.smoke_reason import smoke_jobs
        from jobs.storage.ledger import read_ledger

        awaited = smoke_jobs(self.run_id, read_ledger(self.folder.path))
        smoke = read_ledger(self.folder.smoke.path).jobs
        return next((run_id for run_id, jobs in smoke.items() if jobs[-1].job_id in awaited), None)

    def files(self, job_id: str | None) -> list[Path]:
        """The files that a job has of this log."""
        from jobs.storage.job_logs import log_files

        return log_files(self.folder.logs, job_id, self.rank) if job_id is not None else []

    def ask(self) -> States:
        """The state of the run now."""
        from jobs.schedulers.states import read_states, scheduler_for
        from jobs.storage.ledger import read_ledger

        plan = self.folder.plan()
        scheduler = scheduler_for(plan.kind, os.environ)
        return read_states(self.folder, plan.sweep, scheduler, read_ledger(self.folder.path), [self.run_id])

    def missing(self, conclusion: Conclusion) -> UserError:
        """The error that there is no log, by the state of the run."""
        from jobs.slurm.states import State

        smoke = self._smoke_run()
        if smoke is not None and conclusion.state is State.CANCELLED:
            hint = f"sweep logs {smoke} --sweep {self.folder.smoke.path} prints that of the smoke run"
            return UserError(f"{self.name} has no log: it has not started, and had to wait for a smoke run", hint=hint)
        if conclusion.state is State.NOT_SUBMITTED or self.latest_job() is None:
            return UserError(f"{self.name} was never submitted", hint="sweep submit sends it")
        if conclusion.state.is_pending:
            return UserError(f"{self.name} still waits: {_state_text(conclusion)}", hint="--follow waits for its start")
        message = (
            f"{self.noun} {self.rank} of {self.name} has no log in {str(self.folder.logs)!r}; {_state_text(conclusion)}"
        )
        return UserError(message, hint=f"its job ended before the {self.noun} started, or its log was removed")


def _follow(log: _RunLog, printer: LogPrinter) -> None:
    """Prints the log until the run has ended.

    Raises:
        UserError: It was never submitted, or has ended without a log.
    """
    from jobs.schedulers.states import scheduler_for
    from jobs.slurm.states import State

    interval_s = scheduler_for(log.folder.plan().kind, os.environ).poll_s
    notes: set[str] = set()
    while True:
        job_id = log.latest_job()  # another one, after the run was sent again
        printer.print_new(log.files(job_id))  # Slurm's answer may take a while
        states = log.ask()
        conclusion = states.conclusions[log.run_id]
        has_ended = conclusion.state.is_finished
        for text in (*states.damage, *states.answers.notices):
            if text not in notes:
                _note(text)
            notes.add(text)
        if conclusion.state is State.NOT_SUBMITTED or (has_ended and not log.files(job_id)):
            raise log.missing(conclusion)
        if printer.is_empty and conclusion.state.is_pending and "waits" not in notes:
            notes.add("waits")
            _note(f"{log.name} still waits: {_state_text(conclusion)}")
        end_s = time.monotonic() + interval_s
        printer.print_new(log.files(job_id))
        while not has_ended and time.monotonic() < end_s:
            time.sleep(_POLL_S)
            printer.print_new(log.files(job_id))
        if has_ended:
            return


def _state_text(conclusion: Conclusion) -> str:
    if conclusion.reason:
        return f"{conclusion.state}: {conclusion.reason}"
    return str(conclusion.state)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
