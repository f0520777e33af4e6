"""The jobs of the doctor are sent, waited for, and cancelled. A stand-in for Slurm has their states."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from disttrain.records.job_files.doctor_reports import DoctorRequest, RankReport, read_request, write_report
from jobs.doctor import doctor_jobs
from jobs.doctor.doctor_jobs import DoctorJobs
from jobs.doctor.job_facts import JobFacts
from jobs.entry import DoctorTask
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.plan import JobGroup, Plan
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State

SINGLE, TWO = Allocation(1, 1), Allocation(2, 1)
NAME = "sweep-doctor-call"


@dataclass
class FakeSlurm:
    """Numbers the jobs, and answers squeue with the next states of each."""

    states: Mapping[str, list[QueuedJob | None]]  # by job id; the last one stays
    sent: list[tuple[Plan, JobGroup, DoctorTask]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    asked: int = 0
    is_deaf: bool = False
    on_query: Callable[[int], None] = lambda _: None

    def send(self, plan: Plan, group: JobGroup, tasks: list[DoctorTask], options: Any) -> list[str]:
        self.sent.append((plan, group, tasks[0]))
        return [str(len(self.sent))]

    def squeue(self, name: str, **_: Any) -> dict[str, QueuedJob]:
        self.asked += 1
        self.on_query(self.asked)
        answers = {job_id: states[min(self.asked, len(states)) - 1] for job_id, states in self.states.items()}
        return {job_id: job for job_id, job in answers.items() if job is not None}

    def cancel(self, job_ids: list[str], **_: Any) -> None:
        if self.is_deaf:
            raise UserError("scancel: no answer")
        self.cancelled += job_ids

    def cancel_named(self, name: str, **_: Any) -> None:
        self.cancelled.append(name)


def waiting(job_id: str, reason: str = "Priority") -> QueuedJob:
    return QueuedJob(job_id, State.PENDING, reason)


def ended(job_id: str) -> QueuedJob:
    return QueuedJob(job_id, State.COMPLETED)


Run = Callable[..., list[JobFacts]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the jobs of some allocations against a stand-in for Slurm, without pauses."""
    monkeypatch.setattr(doctor_jobs, "_REPORTS_POLL_S", 0.001)
    monkeypatch.setattr(doctor_jobs, "_LAST_REPORT_S", 0.0)
    monkeypatch.setattr(doctor_jobs, "_nodes_of", lambda job_id: ("node1", "node2"))

    def start(slurm: FakeSlurm, *allocations: Allocation, timeout_s: float = 60.0) -> list[JobFacts]:
        monkeypatch.setattr(doctor_jobs, "send_tasks", slurm.send)
        monkeypatch.setattr(doctor_jobs, "query_squeue", slurm.squeue)
        monkeypatch.setattr(doctor_jobs, "cancel", slurm.cancel)
        monkeypatch.setattr(doctor_jobs, "cancel_named", slurm.cancel_named)
        profile = ClusterProfile.model_validate({"time": "8:00:00", "requeue": "chain", "sbatch": {"exclude": "n9"}})
        jobs = DoctorJobs(Cluster("site", "slurm", profile), tmp_path / "call", DoctorRequest(device="cpu"), print)
        return jobs.run(allocations, timeout_s, poll_s=0.0)

    return start


def test_request_is_that_of_a_run_for_two_minutes(run: Run, tmp_path: Path) -> None:
    slurm = FakeSlurm({"1": [ended("1")]})
    run(slurm, TWO)
    ((plan, group, task),) = slurm.sent
    assert (group.parameters["time"], group.parameters["nodes"], group.parameters["gpus_per_node"]) == (2, 2, 1)
    assert group.parameters["additional_parameters"] == {"no-requeue": True, "exclude": "n9", "dependency": "singleton"}
    assert group.parameters["job_name"] == plan.sweep_name == "sweep-doctor-call"
    assert task == DoctorTask(str(tmp_path / "call" / "2x1"), 2)
    assert read_request(Path(task.folder)).device == "cpu"


def test_reports_are_collected(run: Run, tmp_path: Path) -> None:
    def write(asked: int) -> None:
        if asked == 2:
            for rank in range(2):
                write_report(tmp_path / "call" / "2x1", RankReport(rank=rank, host=f"node{rank}", time_s=1.0))

    running = QueuedJob("1", State.RUNNING)
    slurm = FakeSlurm({"1": [waiting("1"), running, running, ended("1")]}, on_query=write)
    (facts,) = run(slurm, TWO)
    assert (facts.started, facts.ended, facts.missing_ranks) == (True, True, ())
    assert [report.host for report in facts.reports.values()] == ["node0", "node1"]
    assert slurm.cancelled == []


def test_silent_rank_has_its_log(run: Run, tmp_path: Path) -> None:
    def write(asked: int) -> None:
        write_report(tmp_path / "call" / "2x1", RankReport(rank=0, host="node1", time_s=1.0))
        (tmp_path / "call" / "2x1" / "logs" / "1_1_log.err").write_text("python: No module named submitit\n\n")

    (facts,) = run(FakeSlurm({"1": [ended("1")]}, on_query=write), TWO)
    assert (facts.missing_ranks, facts.silent_nodes) == ((1,), ("node2",))
    assert facts.log_line == "python: No module named submitit"


def test_damaged_report_is_none(run: Run, tmp_path: Path) -> None:
    def write(asked: int) -> None:
        (tmp_path / "call" / "1x1" / "rank00000.json").write_text(json.dumps({"rank": "x"}))

    (facts,) = run(FakeSlurm({"1": [ended("1")]}, on_query=write), SINGLE)
    assert facts.missing_ranks == (0,)


def test_job_that_waits_too_long_is_cancelled(run: Run) -> None:
    slurm = FakeSlurm({"1": [waiting("1", "Resources")], "2": [waiting("2", "Dependency")]})
    first, second = run(slurm, SINGLE, TWO, timeout_s=0.05)
    assert (first.started, first.reason, second.started) == (False, "Resources", False)
    assert slurm.cancelled == [NAME]


def test_job_that_never_starts_is_cancelled_immediately(run: Run) -> None:
    slurm = FakeSlurm({"1": [waiting("1", "AssocGrpGRESMinutes")], "2": [waiting("2", "Dependency"), ended("2")]})
    first, second = run(slurm, SINGLE, TWO)
    assert (first.reason, second.started) == ("AssocGrpGRESMinutes", True)
    assert slurm.cancelled == ["1"]


def test_others_wait_while_one_runs(run: Run) -> None:
    running = QueuedJob("1", State.RUNNING)
    slurm = FakeSlurm(
        {
            "1": [*[running] * 400, ended("1")],
            "2": [*[waiting("2", "Dependency")] * 405, ended("2")],
        }
    )
    _, second = run(slurm, SINGLE, TWO, timeout_s=0.3)
    assert second.started
    assert slurm.cancelled == []


def test_job_that_squeue_forgets_has_ended(run: Run) -> None:
    slurm = FakeSlurm({"1": [QueuedJob("1", State.RUNNING), None]})
    (facts,) = run(slurm, SINGLE)
    assert (facts.started, facts.ended) == (True, True)


def test_refused_job_has_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm({})

    def refuse(*_: Any) -> list[str]:
        raise UserError("sbatch refused it: Invalid qos")

    monkeypatch.setattr(slurm, "send", refuse)
    (facts,) = run(slurm, SINGLE)
    assert (facts.refusal, slurm.asked) == ("sbatch refused it: Invalid qos", 0)


def test_slurm_that_does_not_answer_for_a_moment(run: Run) -> None:
    def fail_once(asked: int) -> None:
        if asked == 1:
            raise AccountingUnavailable("squeue failed")

    (facts,) = run(FakeSlurm({"1": [ended("1")]}, on_query=fail_once), SINGLE)
    assert facts.started


def test_interrupt_cancels_the_jobs(run: Run) -> None:
    def interrupt(asked: int) -> None:
        raise KeyboardInterrupt

    slurm = FakeSlurm({"1": [waiting("1")]}, on_query=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(slurm, SINGLE)
    assert slurm.cancelled == [NAME]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("sbatch refused 1 runs of 1x1: Socket timed out")])
def test_job_without_an_answer_is_cancelled(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    slurm = FakeSlurm({})

    def send(*_: Any) -> list[str]:
        raise error

    monkeypatch.setattr(slurm, "send", send)
    with contextlib.suppress(KeyboardInterrupt):
        run(slurm, SINGLE)
    assert slurm.cancelled == [NAME]


def test_failed_cancel_is_repeated_by_name(run: Run) -> None:
    slurm = FakeSlurm({"1": [waiting("1", "AssocGrpGRESMinutes")]}, is_deaf=True)
    (facts,) = run(slurm, SINGLE, timeout_s=0.05)
    assert (facts.ended, slurm.cancelled) == (False, [NAME])


def test_slurm_is_asked_less_often_after_a_while(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_jobs, "_SOON_S", -1.0)
    slurm = FakeSlurm({"1": [waiting("1")]})
    run(slurm, SINGLE, timeout_s=0.1)
    assert slurm.asked == 1
