"""The state of a sweep: one question to sacct, a memory of its answers, and local queues that are gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import jobs.results.status
from disttrain.config.train_config import TrainConfig
from jobs.planning.allocation import Allocation
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec
from jobs.planning.plan import make_plan, plan_json, run_json
from jobs.results.status import read_status
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.sacct import AccountingUnavailable
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder, prepare

RUNNING = AccountingRow("7_0", state=State.RUNNING, submit_s=10, start_s=20, elapsed_s=5, alloc_gpus=1)
DONE = replace(RUNNING, state=State.COMPLETED, end_s=50, elapsed_s=30, exit_code=0)


class Sacct:
    """A sacct that answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Sequence[AccountingRow] | Exception = ()
        self.asked: list[tuple[list[str], float | None]] = []
        self.queued = ["7_0", "7_1"]  # that squeue knows

    def __call__(self, job_ids: Sequence[str], *, since_s: float | None, **_: Any) -> tuple[AccountingRow, ...]:
        self.asked.append((list(job_ids), since_s))
        if isinstance(self.answer, Exception):
            raise self.answer
        return tuple(self.answer)


@pytest.fixture
def sacct(monkeypatch: pytest.MonkeyPatch) -> Sacct:
    fake = Sacct()
    monkeypatch.setattr(jobs.results.status, "query_sacct", fake)
    monkeypatch.setattr(jobs.results.status, "queued_jobs", lambda _, **__: frozenset(fake.queued))
    return fake


@pytest.fixture
def lay_down(tmp_path: Path) -> Callable[..., SweepFolder]:
    """Lays down a sweep of runs a and b."""

    def make(cluster: str = "site") -> SweepFolder:
        folder = SweepFolder(tmp_path / "s" / cluster)
        runs = [RunSpec(name, Allocation(1, 1), TrainConfig(model="bert").resolved(), {}, 0) for name in "ab"]
        profile = None if cluster == "local" else ClusterProfile.model_validate({})
        plan = make_plan("s", runs, cluster, profile, folder.path)
        prepare(folder, "name: s\n", plan_json(plan), [run_json(run) for run in runs])
        return folder

    return make


def states(folder: SweepFolder) -> list[str]:
    return [result.state for result in read_status(folder, {}).results]


def test_one_question_for_all_jobs_since_the_first_was_sent(sacct: Sacct, lay_down: Callable[..., SweepFolder]) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 11.5)
    ledger.record(folder.path, {"a": "9"}, 99.0)
    sacct.answer = [DONE, replace(RUNNING, job_id="9", submit_s=100)]
    status = read_status(folder, {})
    assert sacct.asked == [(["7_0", "9", "7_1"], 11.5)]
    assert [(row.run_id, row.state, row.attempts) for row in status.results] == [
        ("a", "RUNNING", 2),
        ("b", "PENDING", 0),
    ]
    assert status.notices == ()


def test_what_sacct_forgets_is_kept(sacct: Sacct, lay_down: Callable[..., SweepFolder]) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    sacct.answer = [DONE, replace(RUNNING, job_id="7_1")]
    before = read_status(folder, {})
    sacct.answer = []
    assert read_status(folder, {}) == before
    sacct.answer = AccountingUnavailable("sacct is not installed here, or not on PATH")
    notice = "sacct is not installed here, or not on PATH; states are those of the last answer"
    assert read_status(folder, {}) == replace(before, notices=(notice,))


def test_looking_again_writes_nothing_new(sacct: Sacct, lay_down: Callable[..., SweepFolder]) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    for elapsed_s in (5, 6, 7):
        sacct.answer = [replace(RUNNING, elapsed_s=elapsed_s)]
        assert read_status(folder, {}).results[0].elapsed_s == elapsed_s
    assert len(ledger.read_lines(folder.accounting_file)) == 1
    sacct.answer = [DONE]
    assert states(folder) == states(folder) == ["COMPLETED", "PENDING"]
    assert len(ledger.read_lines(folder.accounting_file)) == 2


def test_who_does_not_own_the_folder_writes_nothing(
    sacct: Sacct, lay_down: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    before = sorted(folder.path.rglob("*"))
    sacct.answer = [DONE]
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert states(folder) == ["COMPLETED", "PENDING"]
    assert sorted(folder.path.rglob("*")) == before


def test_submissions_that_broke_off_or_were_refused_are_told(
    sacct: Sacct, lay_down: Callable[..., SweepFolder]
) -> None:
    folder = lay_down()
    ledger.intend(folder.path, ["a"], 1.0)
    ledger.intend(folder.path, ["b"], 2.0)
    ledger.give_up(folder.path, ["b"], 3.0, "invalid account")
    status = read_status(folder, {})
    assert [row.state for row in status.results] == ["NOT_SUBMITTED", "NOT_SUBMITTED"]
    assert status.notices == (
        "a submission broke off while it sent 1 runs: squeue --name=s shows what of it is queued",
        "1 of 2 runs were never sent; sweep submit sends them",
    )


def queue_of(process: psutil.Process, *, host: str | None = None, earlier_s: float = 0.0) -> ledger.QueueProcess:
    return ledger.QueueProcess(host or socket.gethostname(), process.pid, process.create_time() - earlier_s)


def local_states(folder: SweepFolder, queue: ledger.QueueProcess) -> list[str]:
    ledger.record(folder.path, {"a": "local-9-0", "b": "local-9-1"}, 9.0, queue)
    row = replace(RUNNING, job_id="local-9-0", submit_s=9)
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json())])
    return states(folder)


def test_a_local_queue_that_lives(sacct: Sacct, lay_down: Callable[..., SweepFolder]) -> None:
    assert local_states(lay_down("local"), queue_of(psutil.Process())) == ["RUNNING", "PENDING"]
    assert sacct.asked == []


def test_a_local_queue_that_is_gone_left_cancelled_runs(lay_down: Callable[..., SweepFolder]) -> None:
    # Another process has its number by now.
    assert local_states(lay_down("local"), queue_of(psutil.Process(), earlier_s=60)) == ["CANCELLED", "CANCELLED"]


def test_a_local_queue_that_is_dead_but_not_buried_is_gone(lay_down: Callable[..., SweepFolder]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # its end, and nobody has waited for it
    queue = queue_of(psutil.Process(child.pid))
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert local_states(lay_down("local"), queue) == ["CANCELLED", "CANCELLED"]
    child.wait()


def test_a_local_queue_of_another_host_cannot_be_looked_at(lay_down: Callable[..., SweepFolder]) -> None:
    queue = queue_of(psutil.Process(), host="another", earlier_s=60)
    assert local_states(lay_down("local"), queue) == ["RUNNING", "PENDING"]


def test_a_task_that_was_cancelled_while_it_waited_may_be_known_to_nobody(
    sacct: Sacct, lay_down: Callable[..., SweepFolder]
) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 1.0)
    sacct.answer = [DONE]
    assert states(folder) == ["COMPLETED", "PENDING"], "squeue still has it"
    sacct.queued = []
    assert states(folder) == ["COMPLETED", "CANCELLED"]


def test_a_job_that_ran_is_not_taken_for_cancelled_while_sacct_is_late(
    sacct: Sacct, lay_down: Callable[..., SweepFolder]
) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    (folder.run("a") / "metrics-rank00000.jsonl").touch()
    sacct.queued = []
    assert states(folder)[0] == "PENDING"


def test_records_that_an_earlier_job_left_do_not_say_that_this_one_ran(
    sacct: Sacct, lay_down: Callable[..., SweepFolder]
) -> None:
    folder = lay_down()
    records = folder.run("a") / "metrics-rank00000.jsonl"
    records.touch()
    os.utime(records, (1.0, 1.0))
    ledger.record(folder.path, {"a": "7_0"}, 2.0)
    sacct.queued = []
    assert states(folder)[0] == "CANCELLED"


def test_a_job_that_was_just_sent_is_pending_though_nobody_knows_it(
    sacct: Sacct, lay_down: Callable[..., SweepFolder]
) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0"}, time.time())
    sacct.queued = []
    assert states(folder)[0] == "PENDING"


def test_a_preempted_job_is_about_to_be_queued_again_for_a_minute(
    sacct: Sacct, lay_down: Callable[..., SweepFolder]
) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    sacct.answer = [replace(DONE, state=State.PREEMPTED, end_s=int(time.time()) - 5)]
    assert states(folder)[0] == "REQUEUED"
    sacct.answer = [replace(DONE, state=State.PREEMPTED, end_s=int(time.time()) - 100)]
    assert states(folder)[0] == "PREEMPTED"


def test_what_sacct_tells_late_replaces_what_was_concluded(sacct: Sacct, lay_down: Callable[..., SweepFolder]) -> None:
    folder = lay_down()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    sacct.queued = []
    assert states(folder)[0] == "CANCELLED"
    sacct.answer = [replace(DONE, state=State.FAILED, exit_code=1)]
    assert states(folder)[0] == "FAILED"
    (row,) = read_status(folder, {}).results[:1]
    assert row.attempts == 1
