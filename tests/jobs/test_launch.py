"""A submission: what is missing is sent, once, and a mistake leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import jobs.launch
import jobs.results.status
import jobs.slurm.submit
from disttrain.errors import UserError
from jobs.launch import debug, launch
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import JobGroup, Plan, make_plan
from jobs.planning.sweep_file import load_sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder

SWEEP = "name: s\nallocations: [1x1, 2x1]\nbase: {model: bert, max_steps: 3}\nseeds: [0, 1]\n"

LOADED = parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/sweeps")


def plan_of(root: Path, cluster: str = "site", text: str = SWEEP) -> Plan:
    runs = expand(parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere"))
    profile = None if cluster in ("local", "debug") else ClusterProfile.model_validate({})
    return make_plan("s", runs, cluster, profile, root / "s" / cluster)


class Slurm:
    """Takes submissions as sbatch does, and answers as sacct does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states: dict[str, State] = {}
        self.sent: list[list[str]] = []  # run ids, by group
        self.refuses = ""
        monkeypatch.setattr(jobs.slurm.submit, "_sbatch", self.sbatch)
        monkeypatch.setattr(jobs.results.status, "query_sacct", self.sacct)
        monkeypatch.setattr("shutil.which", lambda program: f"/usr/bin/{program}")

    def sbatch(self, _: Plan, group: JobGroup) -> list[str]:
        if str(group.allocation) == self.refuses:
            raise UserError("sbatch refused it")
        self.sent.append([run.run_id for run in group.runs])
        job_ids = [f"{len(self.sent)}_{index}" for index in range(len(group.runs))]
        self.states.update(dict.fromkeys(job_ids, State.PENDING))
        return job_ids

    def sacct(self, job_ids: list[str], **_: Any) -> tuple[AccountingRow, ...]:
        return tuple(AccountingRow(job_id, state=self.states[job_id], submit_s=1) for job_id in job_ids)


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return Slurm(monkeypatch)


def test_what_is_sent_is_sent_once(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    ids = [run.run_id for run in plan.runs]
    launch(plan, LOADED, max_ranks=None)
    launch(plan, LOADED, max_ranks=None)
    assert slurm.sent == [ids[:2], ids[2:]]
    assert capsys.readouterr().out.splitlines() == [
        "s on site: sending 4 of 4 runs",
        "  1x1: 2 runs as job 1",
        "  2x1: 2 runs as job 2",
        "s on site: sending 0 of 4 runs (0 done, 4 under way)",
    ]


def test_what_failed_is_sent_again_and_what_is_done_is_not(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ids = [run.run_id for run in plan.runs]
    launch(plan, LOADED, max_ranks=None)
    slurm.states.update({"1_0": State.COMPLETED, "1_1": State.FAILED, "2_0": State.RUNNING, "2_1": State.TIMEOUT})
    launch(plan, LOADED, max_ranks=None)
    assert slurm.sent[2:] == [[ids[1]], [ids[3]]]
    jobs_of = ledger.read_ledger(plan.folder).jobs
    assert [[job.job_id for job in jobs_of[run_id]] for run_id in ids] == [
        ["1_0"],
        ["1_1", "3_0"],
        ["2_0"],
        ["2_1", "4_0"],
    ]


def test_a_sweep_that_has_grown_sends_what_is_new_and_forgets_nothing(slurm: Slurm, tmp_path: Path) -> None:
    first, grown = plan_of(tmp_path), plan_of(tmp_path, text=SWEEP.replace("[0, 1]", "[1, 2]"))
    launch(first, LOADED, max_ranks=None)
    launch(grown, LOADED, max_ranks=None)
    both = {run.run_id for run in first.runs} | {run.run_id for run in grown.runs}
    assert len(both) == 6
    assert {run["run_id"] for run in SweepFolder(first.folder).planned_runs()} == both
    assert slurm.sent[2:] == [[grown.groups[0].runs[1].run_id], [grown.groups[1].runs[1].run_id]]


def test_what_was_sent_before_a_refusal_stays_sent(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    slurm.refuses = "2x1"
    with pytest.raises(UserError, match="sbatch refused it"):
        launch(plan, LOADED, max_ranks=None)
    found = ledger.read_ledger(plan.folder)
    assert (list(found.jobs), found.unconfirmed) == ([run.run_id for run in plan.groups[0].runs], ())
    slurm.refuses = ""
    launch(plan, LOADED, max_ranks=None)
    assert slurm.sent == [[run.run_id for run in group.runs] for group in plan.groups]


def test_without_slurm_nothing_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        launch(plan_of(tmp_path / "runs"), LOADED, max_ranks=None)
    assert str(caught.value) == (
        "cluster 'site' needs Slurm, and sbatch is not on PATH (submit from a login node, or try --cluster local)"
    )
    assert list(tmp_path.iterdir()) == []


def test_local_runs_are_recorded_before_another_submission_may_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, seen = plan_of(tmp_path, "local"), []

    class Queue:
        def __init__(self, _: SweepFolder, runs: list[Any], max_ranks: int | None, __: int) -> None:
            with pytest.raises(UserError, match="another sweep submit"), ledger.submission_lock(plan.folder):
                pass
            seen.append((len(runs), max_ranks, len(ledger.read_ledger(plan.folder).jobs)))

        def run(self, tick: Any) -> None:
            with ledger.submission_lock(plan.folder):
                seen.append(tick)

    def tick() -> None:
        pass

    monkeypatch.setattr("jobs.local.local_queue.LocalQueue", Queue)
    launch(plan, LOADED, max_ranks=3, tick=tick)
    assert seen == [(4, 3, 4), tick]
    launch(plan, LOADED, max_ranks=3, tick=tick)  # this process is the queue's, and lives
    assert len(seen) == 2


def test_debug_runs_each_as_one_rank_here_and_leaves_the_root_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[int, int, str | None, int]] = []

    class Task:
        def __init__(self, run_dir: str, nodes: int, gpus_per_node: int) -> None:
            self.run_dir, self.shape = run_dir, (nodes, gpus_per_node)

        def __call__(self) -> None:
            assert json.loads((Path(self.run_dir) / "run.json").read_text())["train"]["max_steps"] == 3
            ran.append((*self.shape, os.environ.get("SLURM_PROCID"), os.getpid()))

    monkeypatch.setattr(jobs.slurm.submit, "RankTask", Task)
    monkeypatch.setenv("SLURM_PROCID", "1")  # an interactive job
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = plan_of(tmp_path / "runs", "debug")
    debug(plan, LOADED)
    assert ran == [(1, 1, None, os.getpid())] * 4
    assert not (tmp_path / "runs").exists()
    (scratch,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"debug: 4 runs as one rank each, in {scratch}/s/debug\n"


def test_jobs_of_a_submission_that_broke_off_are_not_sent_twice(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    plan.folder.mkdir(parents=True)
    ledger.intend(plan.folder, [plan.runs[0].run_id], 1.0)
    monkeypatch.setattr(jobs.launch, "queued_jobs", lambda _, **__: frozenset({"71_0", "71_1"}))
    with pytest.raises(UserError, match=r"left jobs that would run twice: 71_0, 71_1 \(scancel 71_0 71_1"):
        launch(plan, LOADED, max_ranks=None)
    assert slurm.sent == []
    monkeypatch.setattr(jobs.launch, "queued_jobs", lambda _, **__: frozenset())
    launch(plan, LOADED, max_ranks=None)
    assert sum(map(len, slurm.sent)) == 4


def test_another_sweep_of_the_same_name_is_not_taken_for_this_one(slurm: Slurm, tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "s.yaml").write_text("name: s\nallocations: [1x1]\nbase: {model: bert, dataset: ./data}\n")
        sweep = load_sweep(tmp_path / name / "s.yaml")
        folder = tmp_path / "runs" / "s" / "site"
        texts.append(make_plan("s", expand(sweep), "site", ClusterProfile.model_validate({}), folder))
    assert texts[0].runs[0].run_id == texts[1].runs[0].run_id
    launch(texts[0], LOADED, max_ranks=None)
    with pytest.raises(UserError, match=r"'s' was submitted with dataset '.*/a/data', this one has '.*/b/data'"):
        launch(texts[1], LOADED, max_ranks=None)
