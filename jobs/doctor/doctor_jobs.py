"""Sends one job per allocation, waits for their ends, and returns what was seen of each."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from disttrain.environment.hostlist import expand_hostlist
from disttrain.errors import UserError
from disttrain.records.file_tail import read_tails
from disttrain.records.job_files.doctor_reports import DoctorRequest, RankReport, read_report, write_request
from jobs.doctor.ask_login import JOB_NAME, request_group
from jobs.doctor.job_facts import JobFacts, never_starts
from jobs.entry import DoctorTask
from jobs.local.local_run import end_processes, start_ranks
from jobs.local.machine import this_machine
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.plan import JobGroup, Plan
from jobs.planning.sbatch_options import with_options
from jobs.schedulers.slurm_scheduler import SlurmScheduler
from jobs.slurm.command import run_command
from jobs.slurm.control import cancel, cancel_named
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob, ask_controller, query_squeue
from jobs.slurm.submit import send_tasks
from jobs.storage.job_logs import log_files

JOB_TIME = "00:02:00"
# A job of two minutes that has started ends within this time, with the time that Slurm needs for its end.
_END_S = 300.0
_REPORTS_POLL_S = 1.0
SLURM_POLL_S = 5.0
# Slurm is asked at this interval for this time, because most jobs start early; then at that of all commands.
_SOON_S = 30.0
# A shared file system may show the last report of a rank this long after the end of its job.
_LAST_REPORT_S = 3.0


class DoctorJobs:
    """The jobs of one call of the doctor on a Slurm cluster.

    Args:
        cluster: The cluster with the changes of the sweep.
        folder: The folder of this call, which all nodes should see.
        request: What the ranks check.
        say: Prints a line about the progress.
    """

    def __init__(self, cluster: Cluster, folder: Path, request: DoctorRequest, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._folder = folder
        self._request = request
        self._say = say
        self._name = f"{JOB_NAME}-{folder.name}"
        self._facts: dict[Allocation, JobFacts] = {}

    def run(self, allocations: Sequence[Allocation], timeout_s: float, poll_s: float = SLURM_POLL_S) -> list[JobFacts]:
        """Sends the jobs, waits for their ends, and cancels those that wait for too long.

        Only one of them runs at a time (a dependency of Slurm), because they would measure each other.

        Args:
            allocations: The allocations.
            timeout_s: How long the jobs may wait in the queue while none of them runs.
            poll_s: The interval between the first questions to Slurm.
        """
        try:
            for allocation in allocations:
                self._facts[allocation] = self._send(allocation)
            self._wait(timeout_s, poll_s)
        finally:
            # Also a job that sbatch has sent without an answer: at Ctrl-C, or when the answer was lost.
            if any(allocation not in self._facts or self._facts[allocation].is_open for allocation in allocations):
                self._cancel_all()
        if any(facts.missing_ranks for facts in self._facts.values()):
            time.sleep(_LAST_REPORT_S)
        return [self._complete(facts) for facts in self._facts.values()]

    def _send(self, allocation: Allocation) -> JobFacts:
        profile = self._cluster.profile_for(allocation)
        assert profile is not None
        folder = self._folder / str(allocation)
        group = _job_group(self._name, allocation, profile)
        plan = Plan(self._name, self._cluster, folder, (group,))
        plan.log_folder.mkdir(mode=0o700, parents=True)
        write_request(folder, self._request)
        sent_s = time.time()
        try:
            (job_id,) = send_tasks(plan, group, [DoctorTask(str(folder), allocation.nodes)], ())
        except UserError as error:
            return JobFacts(allocation, refusal=error.message, ended=True)
        self._say(f"  {allocation} as job {job_id}")
        return JobFacts(allocation, job_id, began_s=sent_s)

    def _wait(self, timeout_s: float, poll_s: float) -> None:
        sent_s = time.time()
        asked_s = 0.0
        busy_s = sent_s  # while one runs, the others wait for it only
        while open_jobs := [facts for facts in self._facts.values() if not facts.ended]:
            time.sleep(_REPORTS_POLL_S)
            now_s = time.time()
            if now_s - asked_s >= (poll_s if now_s - sent_s < _SOON_S else max(poll_s, SlurmScheduler.poll_s)):
                asked_s = now_s
                queue = self._queue()
                for facts in open_jobs:
                    self._note_state(facts, with_state(facts, queue, now_s, sent_s))
                self._cancel_hopeless()
            for facts in open_jobs:
                self._facts[facts.allocation] = self._with_reports(self._facts[facts.allocation], now_s)
            if any(facts.started and not facts.ended for facts in self._facts.values()):
                busy_s = now_s
            if now_s > busy_s + timeout_s:
                return  # they waited too long
            if all(now_s - facts.began_s > timeout_s + _END_S for facts in open_jobs):
                return  # Slurm has lost them, or does not answer

    def _note_state(self, before: JobFacts, now: JobFacts) -> None:
        """Saves the facts of a job, and says that it has started or ended."""
        self._facts[now.allocation] = now
        if now.ended:
            self._say(f"  {now.allocation} has ended")
        elif now.started and not before.started:
            self._say(f"  {now.allocation} has started")

    def _queue(self) -> Mapping[str, QueuedJob] | None:
        """The jobs by id; None if Slurm does not answer at present."""
        try:
            return query_squeue(self._name, user_id=os.geteuid(), environ=os.environ)
        except AccountingUnavailable:
            return None

    def _cancel_hopeless(self) -> None:
        """Cancels the jobs that will never start; what cannot be cancelled is tried again at the next question."""
        for facts in list(self._facts.values()):
            if not (facts.started or facts.ended) and never_starts(facts.reason):
                with contextlib.suppress(UserError):
                    cancel([facts.job_id], environ=os.environ)
                    self._facts[facts.allocation] = dataclasses.replace(facts, ended=True)

    def _with_reports(self, facts: JobFacts, now_s: float) -> JobFacts:
        folder = self._folder / str(facts.allocation)
        reports, seen_s = dict(facts.reports), dict(facts.seen_s)
        for rank in range(facts.allocation.world_size):
            report = _report(folder, rank)
            if report is not None and report != reports.get(rank):
                reports[rank], seen_s[rank] = report, now_s
        return dataclasses.replace(facts, reports=reports, seen_s=seen_s)

    def _cancel_all(self) -> None:
        """Cancels the jobs of this call by their name, which no other job has."""
        try:
            cancel_named(self._name, user_id=os.geteuid(), environ=os.environ)
        except UserError as error:
            self._say(f"note: jobs may still be in the queue: {error.message}")

    def _complete(self, facts: JobFacts) -> JobFacts:
        """The facts with the last reports, and for ranks that did not end what the log and Slurm say."""
        if not facts.started:
            return facts
        facts = self._with_reports(facts, time.time())
        if not facts.missing_ranks and all(report.stage == "done" for report in facts.reports.values()):
            return facts
        logs = self._folder / str(facts.allocation) / "logs"
        ranks = facts.missing_ranks or (0,)
        lines = (_last_line(path) for rank in ranks for path in log_files(logs, facts.job_id, rank))
        return dataclasses.replace(
            facts, nodes=_nodes_of(facts.job_id), log_line=next(filter(None, reversed(list(lines))), None)
        )


def _job_group(name: str, allocation: Allocation, profile: ClusterProfile) -> JobGroup:
    """The request of a job: that of a run of the allocation, for two minutes."""
    short = profile.model_copy(update={"time": JOB_TIME, "requeue": "off", "notify": None})
    group = request_group(allocation, short)
    parameters = with_options({**group.parameters, "job_name": name}, {"dependency": "singleton"})
    return dataclasses.replace(group, parameters=parameters)


def with_state(facts: JobFacts, queue: Mapping[str, QueuedJob] | None, now_s: float, sent_s: float) -> JobFacts:
    """The facts of a job with what squeue says of it.

    Args:
        facts: The facts so far.
        queue: The jobs that squeue lists, by id; None if it does not answer.
        now_s: The time.
        sent_s: When the jobs were sent.
    """
    if queue is None:
        return facts
    job = queue.get(facts.job_id)
    if job is None:
        # squeue forgets an ended job after some minutes; a new one it lists immediately.
        return dataclasses.replace(facts, ended=facts.started)
    state = job.state
    if state.is_pending:
        return dataclasses.replace(facts, state=state, began_s=now_s, waited_s=now_s - sent_s, reason=job.reason)
    return dataclasses.replace(facts, state=state, started=True, ended=state.is_finished)


def run_here(allocations: Sequence[Allocation], folder: Path, request: DoctorRequest) -> list[JobFacts]:
    """Runs the ranks of each allocation on this machine, one allocation after the other.

    Args:
        allocations: The allocations; their nodes are folded onto this machine.
        folder: The folder of this call.
        request: What the ranks check.
    """
    return [_run_here(allocation, folder / str(allocation), request) for allocation in allocations]


def _run_here(allocation: Allocation, folder: Path, request: DoctorRequest) -> JobFacts:
    logs = folder / "logs"
    logs.mkdir(mode=0o700, parents=True)
    write_request(folder, request)
    began_s = time.time()
    task = DoctorTask(str(folder), allocation.nodes, folded=True)
    job = start_ranks(task, allocation.world_size, logs)
    try:
        while not job.done() and time.time() - began_s < _END_S:
            time.sleep(_REPORTS_POLL_S)
    finally:
        end_processes(logs)
    reports = {rank: report for rank in range(allocation.world_size) if (report := _report(folder, rank)) is not None}
    seen_s = {rank: report.time_s for rank, report in reports.items()}  # one clock
    missing = [rank for rank in range(allocation.world_size) if rank not in reports]
    lines = [_last_line(path) for rank in missing for path in log_files(logs, str(job.job_id), rank)]
    return JobFacts(
        allocation, str(job.job_id), started=True, ended=True, began_s=began_s, reports=reports, seen_s=seen_s,
        log_line=next(filter(None, reversed(lines)), None),
        shares_devices=allocation.world_size > len(this_machine(os.environ).gpus),
    )  # fmt: skip


def _report(folder: Path, rank: int) -> RankReport | None:
    """The report of a rank; None if there is none, or none that can be read yet."""
    try:
        return read_report(folder, rank)
    except UserError:
        return None


def _last_line(path: Path) -> str | None:
    """The last line of a log that is not blank."""
    with contextlib.suppress(OSError):
        for lines in read_tails(path):
            texts = [text for line in lines if (text := line.decode(errors="replace").strip())]
            if texts:
                return texts[-1]
    return None


def _nodes_of(job_id: str) -> tuple[str, ...]:
    """The nodes of a job, which may have ended; empty if Slurm does not say it."""
    command = ["squeue", "--noheader", "--all", "--states=all", f"--jobs={job_id}", "--format=%N"]
    try:
        return expand_hostlist(ask_controller(command, os.environ, run_command).strip())
    except (AccountingUnavailable, UserError):
        return ()
