"""Smoke runs: what they are, what waits for them, and what becomes of it when they fail."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from disttrain.config.command.arguments import arguments
from disttrain.config.command.command_config import CommandConfig
from disttrain.config.train_config import TrainConfig
from disttrain.errors import UserError
from disttrain.records.record_files import save_failure
from disttrain.records.summary_types import Failure
from jobs.cli.logs_command import logs
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import JobGroup, Plan, make_plan, plan_json, request_of, run_json
from jobs.planning.sweep_file import Sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.results.result import Result
from jobs.results.status import read_status
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.plan_check import check_plan
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.cancellation import cancel_runs
from jobs.submission.launch import launch, launch_rest
from jobs.submission.recovery import recover
from jobs.submission.resend import resend
from jobs.submission.smoke import SmokeGate, smoke_plan
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of
from tests.jobs.sweeping import train_config

COMMAND = "name: s\nallocations: [1x1, 2x2]\ncommand: python {model}.py\naxes: {model: [a, b], lr: [1, 2]}\n"
TORCHRUN = "name: s\nallocations: [2x2]\ncommand: python a.py\nlauncher: torchrun\naxes: {lr: [1, 2]}\n"
BOOM = "rank 1 on n2: ValueError: boom"


def sweep_of(text: str, root: Path, **profile: Any) -> tuple[Plan, Sweep]:
    sweep = parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere")
    cluster = Cluster("site", "slurm", ClusterProfile.model_validate(profile))
    return make_plan("s", expand(sweep), cluster, root / "s" / "site"), sweep


def submit(plan: Plan, sweep: Sweep = LOADED) -> frozenset[str]:
    return launch(plan, sweep, max_ranks=None, gate=SmokeGate(sweep))


def waits_for(group: JobGroup) -> dict[str, Any]:
    options = group.parameters["additional_parameters"]
    return {name: options.get(name) for name in ("dependency", "kill-on-invalid-dep")}


def rows_of(plan: Plan) -> tuple[Result, ...]:
    return read_status(SweepFolder(plan.folder), {}).results


def fail(slurm: Slurm, job_id: str) -> None:
    """Ends a smoke run as failed: its second rank has reported an error."""
    slurm.states[job_id] = State.FAILED
    failure = Failure(
        rank=1, host="n2", time_s=time.time(), error="ValueError", message="boom", traceback="", user_error=False
    )
    save_failure(slurm.run_dirs[job_id], failure)


def test_the_smoke_run_of_a_model_is_short(tmp_path: Path) -> None:
    text = "name: s\nallocations: [1x1, 2x2]\nmeasure_link: true\naxes: {model: [bert, vit], lr: [1.0, 2.0]}\n"
    text += "base: {epochs: 9, checkpoint_every: 5, eval_every: 5, keep_best_model: true}\n"
    plan, _ = sweep_of(text, tmp_path, time="2:00:00", requeue="chain", notify="true", sbatch={"mail-type": "END"})
    smoke = smoke_plan(plan)
    firsts = [(str(run.allocation), train_config(run).model, train_config(run).lr) for run in smoke.runs]
    assert firsts == [("1x1", "bert", 1.0), ("1x1", "vit", 1.0), ("2x2", "bert", 1.0), ("2x2", "vit", 1.0)]
    assert {run.run_id for run in smoke.runs} < {run.run_id for run in plan.runs}
    for run in smoke.runs:
        config = train_config(run)
        assert (config.max_steps, config.max_eval_examples, config.save_model) == (2, 64, False)
        assert (config.checkpoint_every, config.eval_every, config.keep_best_model) == (None, None, False)
    for group in smoke.groups:
        assert group.profile is not None
        assert (group.time_min, group.profile.requeue, group.profile.notify) == (10, "off", None)
        assert group.profile.resume_policy.max_timeouts == 0
        assert group.parameters["job_name"] == "s-smoke"
        assert group.parameters["additional_parameters"] == {"no-requeue": True, "mail-type": "END"}
    assert smoke.folder == plan.folder / "smoke"


@pytest.mark.parametrize(("most", "time", "expected"), [(0, "5", (0, 5)), (10, "10", (10, 10)), (900, "11", (64, 10))])
def test_a_smoke_run_is_no_longer_than_its_run(most: int, time: str, expected: tuple[int, int], tmp_path: Path) -> None:
    text = f"name: s\nallocations: [1x1]\nbase: {{model: bert, max_eval_examples: {most}}}\n"
    (group,) = smoke_plan(sweep_of(text, tmp_path, time=time)[0]).groups
    assert (train_config(group.runs[0]).max_eval_examples, group.time_min) == expected


def test_the_smoke_run_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").touch()
    plan, _ = sweep_of(COMMAND, tmp_path)
    assert [str(run.allocation) for run in smoke_plan(plan).runs] == ["1x1", "2x2"]
    for extra, words, stop_after_s in (("--steps 2", ["--steps", "2"], None), ("", [], 120.0)):
        check_plan(plan_json(smoke_plan(plan, extra)))
        for run in smoke_plan(plan, extra).runs:
            stored = CommandConfig.from_run(json.loads(json.dumps(run_json(run))))
            assert stored == run.config
            assert arguments(stored) == ["python", "a.py", "--lr", "1", *words]
            assert stored.stop_after_s == stop_after_s
    assert all("stop_after_s" not in run_json(run)["script"] for run in plan.runs)


def test_the_launcher_stays_that_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").touch()
    plan, _ = sweep_of(TORCHRUN, tmp_path)
    (group,) = smoke_plan(plan, "--steps 2").groups
    assert (len(group.runs), group.runs[0].by_node, group.tasks) == (1, True, 2)


@pytest.mark.process
def test_runs_wait_for_the_smoke_run_of_their_allocation(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    assert submit(plan) == frozenset()
    assert capsys.readouterr().out.splitlines() == [
        "s on site: submitting 4 of 4 runs",
        "smoke runs first:",
        "  1x1: 1 run as job 1",
        "  2x1: 1 run as job 2",
        "  1x1: 2 runs as job 3, after job 1_0",
        "  2x1: 2 runs as job 4, after job 2_0",
    ]
    assert [waits_for(group) for group in slurm.groups[2:]] == [
        {"dependency": f"afterok:{job}", "kill-on-invalid-dep": "yes"} for job in ("1_0", "2_0")
    ]
    folder = SweepFolder(plan.folder)
    recorded, of_smoke = read_ledger(folder.path), read_ledger(folder.smoke.path)
    assert [recorded.jobs[run.run_id][-1].after for run in plan.runs] == [("1_0",), ("1_0",), ("2_0",), ("2_0",)]
    assert sorted(of_smoke.jobs) == sorted(group.runs[0].run_id for group in plan.groups)
    assert not slurm.held
    assert json.loads((slurm.run_dirs["1_0"] / "run.json").read_text())["train"]["max_steps"] == 2
    assert slurm.run_dirs["1_0"].parent == folder.path / "smoke" / "runs"
    # It changes neither the request nor the rows.
    assert [request_of(group) for group in slurm.groups[2:]] == [request_of(group) for group in plan.groups]
    assert {row.run_id for row in rows_of(plan)} == {run.run_id for run in plan.runs}
    assert {row.scheduled.reason for row in rows_of(plan)} == {None}
    assert slurm.run_dirs["3_0"].parent == folder.path / "runs"


@pytest.mark.process
def test_a_dependency_of_the_profile_stays(slurm: Slurm, tmp_path: Path) -> None:
    plan, sweep = sweep_of(
        "name: s\nallocations: [1x1]\nbase: {model: bert}\n", tmp_path, sbatch={"dependency": "afterany:7"}
    )
    submit(plan, sweep)
    assert waits_for(slurm.groups[0])["dependency"] == "afterany:7"
    assert waits_for(slurm.groups[1])["dependency"] == "afterok:1_0,afterany:7"


@pytest.mark.process
def test_runs_that_measure_a_link_need_no_smoke_run(slurm: Slurm, tmp_path: Path) -> None:
    plan, sweep = sweep_of("name: s\nallocations: [1x2]\nbase: {model: link}\n", tmp_path)
    submit(plan, sweep)
    (group,) = slurm.groups
    assert waits_for(group) == {"dependency": None, "kill-on-invalid-dep": None}


@pytest.mark.process
def test_a_failed_smoke_run_is_the_reason(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    submit(plan)
    slurm.states["2_0"] = State.RUNNING
    fail(slurm, "1_0")
    slurm.states |= {"3_0": State.CANCELLED, "3_1": State.CANCELLED}  # by Slurm
    rows = rows_of(plan)
    assert [row.state for row in rows] == [State.CANCELLED] * 2 + [State.PENDING] * 2
    reason = f"the smoke run of 1x1 failed: {BOOM}"
    assert [row.scheduled.reason for row in rows] == [reason] * 2 + [None] * 2
    folder = SweepFolder(plan.folder)
    with pytest.raises(UserError) as caught:
        logs(plan.runs[1].run_id, sweep=str(folder.path))
    assert caught.value.hint == (
        f"sweep logs {plan.runs[0].run_id} --sweep {folder.smoke.path} prints that of the smoke run"
    )
    # The next submission sends them again, with a new smoke run or without.
    (slurm.run_dirs["1_0"] / "checkpoint.pt").touch()
    submit(plan)
    assert [path.name for path in slurm.run_dirs["5_0"].iterdir()] == ["run.json"]
    assert [group.runs[0].run_id for group in slurm.groups[4:]] == [plan.groups[0].runs[0].run_id] * 2
    assert waits_for(slurm.groups[5])["dependency"] == "afterok:5_0"
    slurm.states |= {"5_0": State.FAILED, "6_0": State.CANCELLED, "6_1": State.CANCELLED}
    launch(plan, LOADED, max_ranks=None)
    assert waits_for(slurm.groups[6]) == {"dependency": None, "kill-on-invalid-dep": None}
    assert read_ledger(plan.folder).jobs[plan.runs[0].run_id][-1].after == ()
    launch(plan, LOADED, max_ranks=None)
    assert not slurm.cancelled, "the smoke run of the other allocation runs, and its runs wait for it"


@pytest.mark.process
def test_a_run_that_the_user_cancels_keeps_that_reason(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    submit(plan)
    folder = SweepFolder(plan.folder)
    planned = folder.planned_runs()
    cancel_runs(folder, planned[:2])
    assert slurm.states["1_0"] is State.CANCELLED, "no run waits for it"
    assert slurm.states["2_0"] is State.PENDING
    assert rows_of(plan)[0].scheduled.reason == "cancelled by sweep cancel; sweep retry sends it again"


@pytest.mark.process
def test_runs_of_a_smoke_run_that_has_failed_already_are_not_sent(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    sbatch = slurm.sbatch

    def fails_at_once(plan: Plan, group: JobGroup, token: str) -> list[str]:
        job_ids = sbatch(plan, group, token)
        if plan.sweep_name == "s-smoke" and str(group.allocation) == "2x1":
            fail(slurm, job_ids[0])
        return job_ids

    monkeypatch.setattr("jobs.slurm.submit._sbatch", fails_at_once)
    assert submit(plan) == frozenset()
    reason = f"the smoke run of 2x1 failed: {BOOM}"
    assert capsys.readouterr().err == f"note: {reason}; not sent: 2 runs of 2x1\n"
    assert len(slurm.groups) == 3
    rows = rows_of(plan)
    assert [row.state for row in rows] == [State.PENDING] * 2 + [State.CANCELLED] * 2
    assert rows[2].scheduled.reason == reason
    assert not any("never submitted" in notice for notice in read_status(SweepFolder(plan.folder), {}).notices)
    monkeypatch.setattr("jobs.slurm.submit._sbatch", sbatch)
    resend(SweepFolder(plan.folder), [], from_start=False)
    assert [run.run_id for run in slurm.groups[3].runs] == [run.run_id for run in plan.groups[1].runs]
    assert not read_ledger(plan.folder).skipped
    assert rows_of(plan)[2].state is State.PENDING


@pytest.mark.process
def test_each_model_waits_for_its_own_smoke_run(slurm: Slurm, tmp_path: Path) -> None:
    plan, sweep = sweep_of("name: s\nallocations: [1x1]\naxes: {model: [bert, vit], lr: [1.0, 2.0]}\n", tmp_path)
    submit(plan, sweep)
    assert [waits_for(group)["dependency"] for group in slurm.groups[1:]] == ["afterok:1_0", "afterok:1_1"]
    slurm.states["1_0"] = State.RUNNING
    fail(slurm, "1_1")
    slurm.states |= {"3_0": State.CANCELLED, "3_1": State.CANCELLED}
    reasons = [row.scheduled.reason for row in rows_of(plan)]
    assert reasons == [None] * 2 + [f"the smoke run of 1x1 model=vit failed: {BOOM}"] * 2


@pytest.mark.process
def test_what_does_not_fit_is_sent_after_the_same_smoke_run(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, gate = plan_of(tmp_path), SmokeGate(LOADED)
    slurm.limit = 3
    unsent = launch(plan, LOADED, max_ranks=None, gate=gate)
    assert [len(group.runs) for group in slurm.groups] == [1, 1, 1], "two smoke runs and one run"
    assert len(unsent) == 3
    slurm.states["1_0"] = State.COMPLETED
    rest = launch_rest(plan, LOADED, unsent, gate)
    assert rest is not None
    assert len(rest) == 2
    assert waits_for(slurm.groups[3])["dependency"] is None, "its smoke run has succeeded"
    fail(slurm, "2_0")
    assert launch_rest(plan, LOADED, rest, gate) == frozenset()
    assert "not sent: 2 runs of 2x1\n" in capsys.readouterr().err


@pytest.mark.process
def test_runs_whose_smoke_run_does_not_fit_are_not_sent(slurm: Slurm, tmp_path: Path) -> None:
    plan, gate = plan_of(tmp_path), SmokeGate(LOADED)
    slurm.limit = 1
    unsent = launch(plan, LOADED, max_ranks=None, gate=gate)
    assert len(slurm.groups) == 1
    assert unsent == {run.run_id for run in plan.runs}
    slurm.limit = 9
    assert launch_rest(plan, LOADED, unsent, gate) == frozenset()
    assert [len(group.runs) for group in slurm.groups] == [1, 1, 2, 2]
    assert [waits_for(group)["dependency"] for group in slurm.groups[2:]] == ["afterok:1_0", "afterok:2_0"]


@pytest.mark.process
def test_a_killed_submission_leaves_no_smoke_run(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    slurm.error = KeyboardInterrupt()  # after sbatch has accepted the smoke run, and before it is recorded
    with pytest.raises(KeyboardInterrupt):
        submit(plan)
    slurm.error = None
    recover(SweepFolder(plan.folder), {})
    assert slurm.states == {"1_0": State.CANCELLED}
    assert "cancelled what an interrupted submission has left on hold: 1" in capsys.readouterr().err


@pytest.mark.process
def test_a_smoke_run_for_which_no_run_waits_is_ended(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    slurm.refused = "2x1"  # the smoke run of 1x1 is sent and recorded, and no run
    with pytest.raises(UserError):
        submit(plan)
    slurm.refused = ""
    launch(plan, LOADED, max_ranks=None)
    assert slurm.states["1_0"] is State.CANCELLED
    assert "cancelled smoke runs for which no run waits: 1_0" in capsys.readouterr().err
    assert [len(group.runs) for group in slurm.groups] == [1, 2, 2]


@pytest.mark.process
def test_runs_that_are_sent_again_need_the_earlier_smoke_run_no_longer(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    submit(plan)
    (slurm.run_dirs["1_0"] / "log").touch()
    slurm.states |= {"3_0": State.CANCELLED, "3_1": State.CANCELLED}  # by scancel
    submit(plan)
    assert [slurm.states[job] for job in ("1_0", "2_0", "5_0")] == [State.CANCELLED, State.PENDING, State.PENDING]
    assert waits_for(slurm.groups[5])["dependency"] == "afterok:5_0"
    run_dir = slurm.run_dirs["5_0"]
    assert [path.name for path in run_dir.iterdir()] == ["run.json"]
    assert (run_dir.with_name(f".{run_dir.name}.1") / "log").exists(), "its job may still end"


@pytest.mark.process
def test_a_smoke_run_whose_runs_are_not_sent_yet_stays(slurm: Slurm, tmp_path: Path) -> None:
    """Another submission waits until Slurm accepts them."""
    plan = plan_of(tmp_path)
    slurm.limit = 3
    assert len(submit(plan)) == 3
    folder = SweepFolder(plan.folder)
    cancel_runs(folder, folder.planned_runs()[:1])
    assert [slurm.states[job] for job in ("1_0", "2_0")] == [State.CANCELLED, State.PENDING]


def test_a_smoke_run_is_the_run_otherwise(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    (first, _) = smoke_plan(plan).runs
    changed = ("max_steps", "max_eval_examples", "save_model", "timing_warmup_steps")
    config = plan.runs[0].config
    assert isinstance(config, TrainConfig)
    assert dataclasses.replace(train_config(first), **{name: getattr(config, name) for name in changed}) == config
