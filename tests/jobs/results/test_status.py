"""The status of a sweep: one sacct call, its saved answers, and local queues that have ended."""

from __future__ import annotations

import io
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

import jobs.schedulers.slurm_scheduler
from disttrain.config.train_config import TrainConfig
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import RunSpec
from jobs.planning.plan import make_plan, plan_json, run_json
from jobs.results.status import last_known, read_status
from jobs.results.sweep_list import listed_sweeps
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.sacct_table import AccountingUnavailable
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.code_snapshot import Snapshot
from jobs.storage.sweep_folder import SweepFolder, prepare, prepare_runs
from tests.jobs.results.live.test_stalls import START, step_line, write_run

RUNNING = AccountingRow("7_0", state=State.RUNNING, submit_s=10, start_s=20, elapsed_s=5, alloc_gpus=1)
DONE = replace(RUNNING, state=State.COMPLETED, end_s=50, elapsed_s=30, exit_code=0)


class Sacct:
    """A mock of sacct with a prepared answer, which stores the queries: a real sacct cannot be made to lose jobs."""

    def __init__(self) -> None:
        self.answer: Sequence[AccountingRow] | Exception = ()
        self.queries: list[tuple[list[str], float | None]] = []
        self.queued: dict[str, tuple[State, str]] | None = {}  # the answer of squeue; None: it does not answer
        self.here: str | None = None  # the name of the cluster

    def __call__(self, job_ids: Sequence[str], *, since_s: float | None, **_: Any) -> tuple[AccountingRow, ...]:
        self.queries.append((list(job_ids), since_s))
        if isinstance(self.answer, Exception):
            raise self.answer
        return tuple(self.answer)

    def squeue(self, *_: Any, **__: Any) -> dict[str, QueuedJob]:
        if self.queued is None:
            raise AccountingUnavailable("squeue failed: no controller")
        return {job_id: QueuedJob(job_id, *values) for job_id, values in self.queued.items()}


WAITS, RUNS = (State.PENDING, "Priority"), (State.RUNNING, "None")


@pytest.fixture
def sacct(monkeypatch: pytest.MonkeyPatch) -> Sacct:
    fake = Sacct()
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_sacct", fake)
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_squeue", fake.squeue)
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "cluster_name", lambda **_: fake.here)
    return fake


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., SweepFolder]:
    """A function that writes the files of a sweep of runs a and b."""

    def make(cluster: str = "site") -> SweepFolder:
        folder = SweepFolder(tmp_path / "s" / cluster)
        runs = [RunSpec(name, Allocation(1, 1), TrainConfig(model="bert").resolved(), {}, {}, 0) for name in "ab"]
        where = Cluster(cluster, "slurm", ClusterProfile.model_validate({}))
        if cluster == "local":
            where = Cluster(cluster, "local")
        plan = make_plan("s", runs, where, folder.path)
        prepare(folder, "name: s\n", plan_json(plan), {run.run_id for run in runs})
        prepare_runs(folder, [run_json(run) for run in runs])
        return folder

    return make


def finish(folder: SweepFolder, *run_ids: str) -> None:
    """Writes the summaries of runs, as their ranks do."""
    for run_id in run_ids:
        (folder.run(run_id) / "summary.json").write_text('{"steps": 3}')


def states(folder: SweepFolder) -> list[str]:
    return [result.state for result in read_status(folder, {}).results]


@pytest.mark.process
def test_one_sacct_call_for_all_jobs(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 11.5)
    ledger.record(folder.path, {"a": "9"}, 99.0)
    sacct.answer = [DONE, replace(RUNNING, job_id="9", submit_s=100)]
    sacct.queued = {"9": RUNS, "7_1": WAITS}
    status = read_status(folder, {})
    assert sacct.queries == [(["7_0", "9", "7_1"], 11.5)]
    assert [(row.run_id, row.state, row.scheduled.attempts) for row in status.results] == [
        ("a", "RUNNING", 2),
        ("b", "PENDING", 0),
    ]
    assert status.notices == ()


@pytest.mark.process
def test_a_run_that_makes_no_steps_says_so(
    sacct: Sacct, write_sweep: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the files of a run that runs are read for it: those of the other run would say the same."""
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    for run_id in "ab":
        write_run(folder.run(run_id), {0: START + step_line(119)}, time.time() - 245)
    finish(folder, "b")
    sacct.answer = [RUNNING, replace(DONE, job_id="7_1")]
    sacct.queued = {"7_0": RUNS}
    opened: list[Path] = []
    real = io.open

    def count(path: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(Path(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(io, "open", count)
    reasons = [row.scheduled.reason for row in read_status(folder, {}).results]
    assert reasons == ["no step for 4 min (rank 0 last wrote step 119)", None]
    names = [path.name for path in opened if path.parent == folder.run("b")]
    assert sorted(set(names)) == ["run.json", "summary.json"]
    assert (folder.run("a") / "stage.json") in opened
    sacct.answer, sacct.queued = [replace(DONE, job_id=job_id) for job_id in ("7_0", "7_1")], {}
    finish(folder, "a")
    opened.clear()
    assert [row.scheduled.reason for row in read_status(folder, {}).results] == [None, None]
    assert {path.name for path in opened if folder.run("a") in path.parents} == {"run.json", "summary.json"}


@pytest.mark.process
def test_saves_sacct_answers(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    sacct.answer = [DONE, replace(RUNNING, job_id="7_1")]
    sacct.queued = {"7_1": RUNS}
    before = read_status(folder, {})
    sacct.answer = []
    assert read_status(folder, {}) == before
    sacct.answer = AccountingUnavailable("sacct is not installed here, or not on PATH")
    missing = "sacct is not installed here, or not on PATH"
    by_squeue = "squeue says what waits and runs, and the runs' own files what has ended"
    notice = f"{missing}; {by_squeue}; its last answer is 0 s old"
    assert read_status(folder, {}) == replace(before, notices=(notice,), is_current=False)
    sacct.queued = None
    notices = (
        "squeue failed: no controller",
        f"{missing}; the states are the last known ones, and its last answer is 0 s old",
    )
    after = read_status(folder, {})
    assert (after.notices, after.is_current) == (notices, False)
    assert [row.state for row in after.results] == [row.state for row in before.results]


@pytest.mark.process
def test_repeated_query_writes_no_new_rows(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    sacct.queued = {"7_0": RUNS, "7_1": WAITS}
    for elapsed_s in (5, 6, 7):
        sacct.answer = [replace(RUNNING, elapsed_s=elapsed_s)]
        assert read_status(folder, {}).results[0].scheduled.elapsed_s == elapsed_s
    assert len(ledger.read_lines(folder.accounting_file)) == 1
    sacct.answer, sacct.queued = [DONE], {"7_1": WAITS}
    assert states(folder) == states(folder) == ["COMPLETED", "PENDING"]
    assert len(ledger.read_lines(folder.accounting_file)) == 2


@pytest.mark.process
def test_other_users_write_nothing(
    sacct: Sacct, write_sweep: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 9.0)
    before = sorted(folder.path.rglob("*"))
    sacct.answer = [DONE]
    sacct.queued = {"7_1": WAITS}
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert states(folder) == ["COMPLETED", "PENDING"]
    assert sorted(folder.path.rglob("*")) == before


@pytest.mark.process
def test_notices_of_failed_submissions(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.intend(folder.path, ["a"], 1.0)
    ledger.intend(folder.path, ["b"], 2.0)
    ledger.give_up(folder.path, ["b"], 3.0, "invalid account")
    status = read_status(folder, {})
    assert [row.state for row in status.results] == ["NOT_SUBMITTED", "NOT_SUBMITTED"]
    assert status.notices == (
        "a submission of 1 runs was interrupted: squeue --name=s shows which of its jobs exist",
        "1 of 2 runs were never submitted; sweep submit submits them",
    )


@pytest.mark.process
def test_versions_of_the_code_are_a_notice(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 1.0)
    sacct.answer = [DONE, replace(DONE, job_id="7_1")]
    finish(folder, "a", "b")
    runs = folder.planned_runs()

    def notices(a: str, b: str | None) -> tuple[str, ...]:
        code = {"a": Snapshot("/project", a, folder.code_store)}
        if b is not None:
            code["b"] = Snapshot("/project", b, folder.code_store)
        prepare_runs(folder, runs, code=code)
        finish(folder, "a", "b")
        status = read_status(folder, {})
        assert [row.columns()["code"] for row in status.results] == [a, b]
        return status.notices

    assert notices("abc", "def") == ("the runs have 2 versions of the code: abc (1 run), def (1 run)",)
    assert notices("abc", "abc") == ()
    assert notices("abc", None) == ()  # a model of ours, next to a script


@pytest.mark.process
@pytest.mark.parametrize("others", [{"job_name": "other"}, {"job_name": "s", "user_id": os.getuid() + 1}])
def test_rows_of_other_jobs_are_not_ours(
    others: dict[str, Any], sacct: Sacct, write_sweep: Callable[..., SweepFolder]
) -> None:
    """Numbers of jobs are used again, and other clusters have them too."""
    folder = write_sweep()
    finish(folder, "b")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 1.0)
    sacct.answer = [replace(DONE, **others), replace(DONE, job_id="7_1", job_name="s", user_id=os.getuid())]
    sacct.queued = {"7_0": WAITS}
    assert states(folder) == ["PENDING", "COMPLETED"]
    assert [row["job_id"] for row in ledger.read_lines(folder.accounting_file)] == ["7_1"]
    if others["job_name"] == "other":
        ledger.append_lines(folder.accounting_file, [json.dumps(replace(DONE, **others).to_json())])
        assert states(folder) == ["PENDING", "COMPLETED"], "a former release has saved such a row"


@pytest.mark.process
def test_jobs_of_another_cluster_are_not_asked_for(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    finish(folder, "b")
    ledger.record(folder.path, {"a": "7_0"}, 1.0, cluster="large")
    ledger.record(folder.path, {"b": "9"}, 1.0, cluster="small")
    sacct.here = "small"
    sacct.answer = [replace(DONE, job_id="9")]
    (first, second) = read_status(folder, {}).results
    assert (first.state, second.state) == ("UNKNOWN", "COMPLETED")
    assert first.scheduled.reason == "job 7_0 is on cluster large; the Slurm of this host is small"
    assert sacct.queries == [(["9"], 1.0)]


@pytest.mark.process
def test_a_reader_sees_that_jobs_are_hidden(
    sacct: Sacct, write_sweep: Callable[..., SweepFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    (first, _) = read_status(folder, {}).results
    assert (first.state, first.scheduled.reason) == ("UNKNOWN", "its job is not visible to you")


@pytest.mark.process
def test_the_notice_of_an_interrupted_submission_says_what_next(
    sacct: Sacct, write_sweep: Callable[..., SweepFolder]
) -> None:
    folder = write_sweep()
    ledger.intend(folder.path, ["a", "b"], 1.0, token="0123456789abcdef")
    expected = "a submission of 2 runs was interrupted: its jobs are on hold; sweep submit sends its runs again"
    assert expected in read_status(folder, {}).notices


def queue_of(process: psutil.Process, *, host: str | None = None, earlier_s: float = 0.0) -> ledger.QueueProcess:
    return ledger.QueueProcess(host or socket.gethostname(), process.pid, process.create_time() - earlier_s)


def local_states(folder: SweepFolder, queue: ledger.QueueProcess) -> list[str]:
    ledger.record(folder.path, {"a": "local-9-0", "b": "local-9-1"}, 9.0, queue)
    row = replace(RUNNING, job_id="local-9-0", submit_s=9)
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json())])
    return states(folder)


@pytest.mark.process
def test_living_local_queue(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    assert local_states(write_sweep("local"), queue_of(psutil.Process())) == ["RUNNING", "PENDING"]
    assert sacct.queries == []


@pytest.mark.process
def test_ended_local_queue_cancels_its_runs(write_sweep: Callable[..., SweepFolder]) -> None:
    # Another process has the same pid.
    assert local_states(write_sweep("local"), queue_of(psutil.Process(), earlier_s=60)) == ["CANCELLED", "CANCELLED"]


@pytest.mark.process
def test_zombie_queue_has_ended(write_sweep: Callable[..., SweepFolder]) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # until it ends, without a wait for it
    queue = queue_of(psutil.Process(child.pid))
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert local_states(write_sweep("local"), queue) == ["CANCELLED", "CANCELLED"]
    child.wait()


@pytest.mark.process
def test_queue_on_another_host_counts_as_living(write_sweep: Callable[..., SweepFolder]) -> None:
    queue = queue_of(psutil.Process(), host="another", earlier_s=60)
    assert local_states(write_sweep("local"), queue) == ["RUNNING", "PENDING"]


@pytest.mark.process
def test_unlisted_task_is_cancelled(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 1.0)
    sacct.answer = [DONE]
    sacct.queued = {"7_1": WAITS}
    assert states(folder) == ["COMPLETED", "PENDING"], "squeue still lists it"
    sacct.queued = {}
    assert states(folder) == ["COMPLETED", "CANCELLED"]


@pytest.mark.process
def test_a_run_that_squeue_still_lists_is_done(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    """squeue lists what has ended for MinJobAge, while another run goes on."""
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 1.0)
    sacct.answer = [replace(DONE, end_s=int(time.time()) - 120), replace(RUNNING, job_id="7_1")]
    sacct.queued = {"7_0": (State.COMPLETED, "None"), "7_1": RUNS}
    assert states(folder) == ["COMPLETED", "RUNNING"]


@pytest.mark.process
def test_a_moved_folder_keeps_its_rows(sacct: Sacct, write_sweep: Callable[..., SweepFolder], tmp_path: Path) -> None:
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, 1.0)
    sacct.answer = [replace(DONE, job_name="s"), replace(RUNNING, job_id="7_1", job_name="s")]
    sacct.queued = {"7_1": RUNS}
    before = states(folder)
    (tmp_path / "other").mkdir()
    moved = SweepFolder(folder.path.rename(tmp_path / "other" / "local"))  # its name says nothing
    assert states(moved) == before == ["COMPLETED", "RUNNING"]
    assert (moved.plan().sweep, moved.plan().cluster, moved.plan().kind) == ("s", "site", "slurm")


@pytest.mark.process
def test_a_copy_of_a_local_folder_stays_local(write_sweep: Callable[..., SweepFolder], tmp_path: Path) -> None:
    """A rehearsal has no waits and no GPU-hours, whatever its folder is called."""
    folder = write_sweep("local")
    ledger.record(folder.path, {"a": "local-1-0", "b": "local-1-1"}, 1.0)
    moved = SweepFolder(folder.path.rename(tmp_path / "s" / "site"))
    (first, _) = read_status(moved, {}).results
    assert (first.state, first.scheduled.job_id, first.scheduled.gpu_hours) == ("PENDING", None, None)


@pytest.mark.process
def test_a_run_without_a_summary_is_not_done(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    sacct.answer = [DONE]
    (first, _) = read_status(folder, {}).results
    assert (first.state, first.scheduled.state_source) == ("FAILED", "records")
    assert first.scheduled.reason == "its job ended with status 0, but the run has no summary, so it is not done"
    finish(folder, "a")
    assert states(folder)[0] == "COMPLETED"


@pytest.mark.process
def test_job_with_records_is_not_cancelled(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    records = folder.run("a") / "metrics-rank00000.jsonl"
    records.touch()
    sacct.queued = {}
    assert states(folder)[0] == "PENDING", "sacct may be late"
    os.utime(records, (time.time() - 1000, time.time() - 1000))
    (first, _) = read_status(folder, {}).results
    assert (first.state, first.scheduled.state_source) == ("FAILED", "squeue")
    assert first.scheduled.reason == "its job has ended without a result, and Slurm's accounting does not say why"


@pytest.mark.process
def test_records_of_an_earlier_job(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    records = folder.run("a") / "metrics-rank00000.jsonl"
    records.touch()
    os.utime(records, (1.0, 1.0))
    ledger.record(folder.path, {"a": "7_0"}, 2.0)
    sacct.queued = {}
    assert states(folder)[0] == "CANCELLED"


@pytest.mark.process
def test_new_unlisted_job_is_pending(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, time.time())
    sacct.queued = {}
    assert states(folder)[0] == "PENDING"


@pytest.mark.process
@pytest.mark.parametrize("state", [State.PREEMPTED, State.NODE_FAIL])
def test_job_that_slurm_ended_is_requeued_for_a_minute(
    state: State, sacct: Sacct, write_sweep: Callable[..., SweepFolder]
) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    sacct.answer = [replace(DONE, state=state, end_s=int(time.time()) - 5)]
    assert states(folder)[0] == "REQUEUED"
    sacct.answer = [replace(DONE, state=state, end_s=int(time.time()) - 100)]
    assert states(folder)[0] == state
    sacct.answer = [replace(DONE, state=State.FAILED, end_s=int(time.time()) - 5)]
    assert states(folder)[0] == "FAILED", "only a lost node or a preemption is followed by a requeue"


@pytest.mark.process
def test_a_run_that_was_just_sent_again_is_pending(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    ledger.record(folder.path, {"a": "9"}, time.time())
    sacct.answer = [replace(DONE, state=State.FAILED)]
    sacct.queued = {}
    assert states(folder)[0] == "PENDING"


@pytest.mark.process
def test_late_sacct_row_replaces_inferred_state(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    ledger.record(folder.path, {"a": "7_0"}, 1.0)
    sacct.queued = {}
    assert states(folder)[0] == "CANCELLED"
    sacct.answer = [replace(DONE, state=State.FAILED, exit_code=1)]
    assert states(folder)[0] == "FAILED"
    (row,) = read_status(folder, {}).results[:1]
    assert row.scheduled.attempts == 1


@pytest.mark.process
def test_last_known_states_need_no_answer(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    finish(folder, "a")
    ledger.record(folder.path, {"a": "7_0", "b": "7_1"}, time.time())
    known = last_known(folder)
    assert (known.states, known.known_s) == ({"a": State.PENDING, "b": State.PENDING}, None)
    sacct.answer = [DONE]
    sacct.queued = {"7_1": WAITS}
    before_s = time.time()
    read_status(folder, {})
    sacct.answer = RuntimeError("sweep list asks nothing")
    known = last_known(folder)
    assert known.states == {"a": State.COMPLETED, "b": State.PENDING}
    assert known.known_s == pytest.approx(before_s, abs=60)
    assert len(sacct.queries) == 1


@pytest.mark.process
def test_dropped_runs_are_not_listed(sacct: Sacct, write_sweep: Callable[..., SweepFolder]) -> None:
    folder = write_sweep()
    first, second = folder.planned_runs()
    folder.write_plan({"runs": [first, {**second, "dropped": True}]})
    assert last_known(folder).states == {"a": State.NOT_SUBMITTED}


@pytest.mark.process
def test_list_shows_a_damaged_sweep(write_sweep: Callable[..., SweepFolder], tmp_path: Path) -> None:
    write_sweep()
    (tmp_path / "broken" / "site").mkdir(parents=True)
    (tmp_path / "broken" / "site" / "plan.json").write_text("{")
    listed = {sweep.folder.sweep_name: sweep for sweep in listed_sweeps(tmp_path)}
    assert listed["s"].counts == {"NOT_SUBMITTED": 2}
    assert (listed["s"].age_s, listed["s"].error) == (None, None)
    assert str(listed["broken"].error).startswith("cannot be read: ")
