"""A submission: every missing run is submitted once, and a mistake leaves no files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import jobs.schedulers.slurm_scheduler
import jobs.slurm.interrupted
import jobs.slurm.submit
import jobs.submission.launch
from disttrain.errors import UserError
from jobs.local.machine import QueuedRun
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import JobGroup, Plan, make_plan
from jobs.planning.sweep_file import load_sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.attempts import AccountingRow
from jobs.slurm.squeue import QueuedJob
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import debug, launch
from tests.jobs.submission.fake_slurm import LOADED, SWEEP, Slurm, plan_of


@pytest.mark.process
def test_submits_every_run_once(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    ids = [run.run_id for run in plan.runs]
    launch(plan, LOADED, max_ranks=None)
    launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted == [ids[:2], ids[2:]]
    assert capsys.readouterr().out.splitlines() == [
        "s on site: submitting 4 of 4 runs",
        "  1x1: 2 runs as job 1",
        "  2x1: 2 runs as job 2",
        "s on site: submitting 0 of 4 runs (0 done, 4 queued or running)",
    ]


@pytest.mark.process
def test_submits_failed_runs_again(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    ids = [run.run_id for run in plan.runs]
    launch(plan, LOADED, max_ranks=None)
    slurm.states.update({"1_0": State.COMPLETED, "1_1": State.FAILED, "2_0": State.RUNNING, "2_1": State.TIMEOUT})
    launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted[2:] == [[ids[1]], [ids[3]]]
    jobs_of = ledger.read_ledger(plan.folder).jobs
    assert [[job.job_id for job in jobs_of[run_id]] for run_id in ids] == [
        ["1_0"],
        ["1_1", "3_0"],
        ["2_0"],
        ["2_1", "4_0"],
    ]


@pytest.mark.process
def test_submits_the_new_runs_of_a_sweep(slurm: Slurm, tmp_path: Path) -> None:
    first, grown = plan_of(tmp_path), plan_of(tmp_path, text=SWEEP.replace("[0, 1]", "[1, 2]"))
    launch(first, LOADED, max_ranks=None)
    launch(grown, LOADED, max_ranks=None)
    both = {run.run_id for run in first.runs} | {run.run_id for run in grown.runs}
    assert len(both) == 6
    assert {run["run_id"] for run in SweepFolder(first.folder).planned_runs()} == both
    assert slurm.submitted[2:] == [[grown.groups[0].runs[1].run_id], [grown.groups[1].runs[1].run_id]]


@pytest.mark.process
def test_runs_of_other_overrides_stay(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A submission with --set drops nothing. A shorter list drops the points of every submission."""

    def submit(text: str, overrides: dict[str, str]) -> tuple[list[bool | None], str]:
        """The marks of the runs in plan.json, and the notes of the command."""
        sweep = parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere", overrides)
        plan = make_plan(
            "s", expand(sweep), Cluster("site", "slurm", ClusterProfile.model_validate({})), tmp_path / "s" / "site"
        )
        launch(plan, sweep, max_ranks=None)
        marks = [run.get("dropped") for run in SweepFolder(plan.folder).planned_runs()]
        return marks, capsys.readouterr().err.partition("\n")[0]

    decay = {"weight_decay": "0.1"}
    shorter, twice = SWEEP.replace("[0, 1]", "[0]"), "note: 4 runs are no longer in the sweep file; sweep forget"
    assert submit(SWEEP, {}) == ([None] * 4, "")
    assert submit(SWEEP, decay) == ([None] * 8, "")
    assert submit(shorter, {}) == ([None, None, None, True, None, True, True, True], f"{twice} removes them")
    assert len(slurm.submitted) == 4
    assert submit(SWEEP.replace("[0, 1]", "[1]"), decay)[0].count(True) == 4
    assert submit(SWEEP, {}) == ([None] * 8, "")
    assert len(slurm.submitted) == 4


@pytest.mark.process
def test_a_run_keeps_the_config_of_its_submission(slurm: Slurm, tmp_path: Path) -> None:
    """num_workers is not part of the id: the second submission sends only the new seed with its value."""

    def submit(seeds: str, overrides: dict[str, str]) -> list[tuple[int, int, int]]:
        text = f"name: s\nallocations: [1x1]\nbase: {{model: bert}}\nseeds: {seeds}\n"
        sweep = parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere", overrides)
        plan = make_plan(
            "s", expand(sweep), Cluster("site", "slurm", ClusterProfile.model_validate({})), tmp_path / "s" / "site"
        )
        launch(plan, sweep, max_ranks=None)
        runs = SweepFolder(plan.folder).planned_runs()
        written = [
            json.loads((SweepFolder(plan.folder).run(run["run_id"]) / "run.json").read_text())["train"] for run in runs
        ]
        return [
            (run["train"]["seed"], run["train"]["num_workers"], train["num_workers"])
            for run, train in zip(runs, written, strict=True)
        ]

    assert submit("[0]", {}) == [(0, 2, 2)]
    assert submit("[0, 1]", {"num_workers": "0"}) == [(0, 2, 2), (1, 0, 0)]
    assert submit("[0, 1]", {"num_workers": "1"}) == [(0, 2, 2), (1, 0, 0)]


@pytest.mark.process
@pytest.mark.parametrize("kept", [None, 1])
def test_a_lost_plan_repeats_no_run(slurm: Slurm, tmp_path: Path, kept: int | None) -> None:
    """plan.json was removed, as its error message advises, or an older one was restored."""
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    launch(plan, LOADED, max_ranks=None)
    slurm.states.update({"1_0": State.COMPLETED, "1_1": State.FAILED, "2_0": State.RUNNING})
    planned = folder.planned_runs()
    folder.plan_file.unlink()
    if kept is not None:
        folder.write_plan({"runs": planned[:kept]})
    launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted[2:] == [[plan.runs[1].run_id]]
    assert [run["run_id"] for run in folder.planned_runs()] == [run.run_id for run in plan.runs]


@pytest.mark.process
def test_notes_one_dropped_run(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "name: s\nallocations: [1x1]\nbase: {model: bert}\nseeds: [0, 1]\n"
    launch(plan_of(tmp_path, text=text), LOADED, max_ranks=None)
    launch(plan_of(tmp_path, text=text.replace("[0, 1]", "[0]")), LOADED, max_ranks=None)
    note = "note: 1 run is no longer in the sweep file; sweep forget removes it\n"
    active = "note: 1 of the dropped runs still waits or runs; sweep cancel --dropped ends it: 1x1-"
    assert capsys.readouterr().err.startswith(note + active)
    assert len(slurm.submitted) == 1


@pytest.mark.process
def test_a_refusal_leaves_earlier_groups_submitted(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    slurm.refused = "2x1"
    with pytest.raises(UserError, match="sbatch refused it"):
        launch(plan, LOADED, max_ranks=None)
    events = ledger.read_ledger(plan.folder)
    assert (list(events.jobs), events.unconfirmed) == ([run.run_id for run in plan.groups[0].runs], ())
    slurm.refused = ""
    launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted == [[run.run_id for run in group.runs] for group in plan.groups]


def test_without_slurm_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        launch(plan_of(tmp_path / "runs"), LOADED, max_ranks=None)
    assert str(caught.value) == (
        "cluster 'site' needs Slurm, and sbatch is not on PATH (submit from a login node, or try --cluster local)"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_records_local_runs_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, seen = plan_of(tmp_path, "local"), []

    class Queue:
        def __init__(self, _: SweepFolder, runs: list[Any], max_ranks: int | None, __: int) -> None:
            with pytest.raises(UserError, match="another sweep command"), ledger.submission_lock(plan.folder):
                pass
            seen.append((len(runs), max_ranks, len(ledger.read_ledger(plan.folder).jobs)))

        def run(self, on_poll: Any) -> None:
            with ledger.submission_lock(plan.folder):
                seen.append(on_poll)

    def on_poll() -> None:
        pass

    monkeypatch.setattr("jobs.local.local_queue.LocalQueue", Queue)
    launch(plan, LOADED, max_ranks=3, on_poll=on_poll)
    assert seen == [(4, 3, 4), on_poll]
    launch(plan, LOADED, max_ranks=3, on_poll=on_poll)  # this process is the queue and still runs
    assert len(seen) == 2


@pytest.mark.process
def test_debug_runs_each_run_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[int, int, str | None, str, int]] = []

    class Task:
        def __init__(self, run_dir: str, nodes: int, gpus_per_node: int) -> None:
            self.run_dir, self.allocation = run_dir, (nodes, gpus_per_node)

        def __call__(self) -> None:
            assert json.loads((Path(self.run_dir) / "run.json").read_text())["train"]["max_steps"] == 3
            gpus = os.environ["CUDA_VISIBLE_DEVICES"]
            calls.append((*self.allocation, os.environ.get("SLURM_PROCID"), gpus, os.getpid()))

    monkeypatch.setattr("jobs.local.debug.RankTask", Task)
    monkeypatch.setenv("SLURM_PROCID", "1")  # an interactive job
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = plan_of(tmp_path / "runs", "debug")
    debug(plan, LOADED)
    assert calls == [(1, 1, None, "5", os.getpid())] * 4
    assert not (tmp_path / "runs").exists()
    (scratch,) = tmp_path.iterdir()
    assert capsys.readouterr().out == f"debug: 4 runs as one rank each, in {scratch}/s/debug\n"


@pytest.mark.process
def test_an_interrupted_submission_is_not_repeated(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    plan.folder.mkdir(parents=True)
    ledger.intend(plan.folder, [plan.runs[0].run_id], 1.0)
    queued = {name: QueuedJob(name, State.PENDING) for name in ("71_0", "71_1")}
    queued["70"] = QueuedJob("70", State.CANCELLED)
    monkeypatch.setattr(jobs.slurm.interrupted, "query_squeue", lambda _, **__: queued)
    with pytest.raises(UserError, match=r"left jobs that would run twice: 71_0, 71_1 \(scancel 71_0 71_1"):
        launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted == []
    monkeypatch.setattr(jobs.slurm.interrupted, "query_squeue", lambda _, **__: {})
    launch(plan, LOADED, max_ranks=None)
    assert sum(map(len, slurm.submitted)) == 4


def started_once(slurm: Slurm, plan: Plan) -> None:
    """Checks that each run has one job that can start, and that nothing else can."""
    live = {job_id for job_id, state in slurm.states.items() if state is not State.CANCELLED}
    latest = {jobs_of[-1].job_id for jobs_of in ledger.read_ledger(plan.folder).jobs.values()}
    assert (live, len(live), slurm.held & live) == (latest, len(plan.runs), set())


@pytest.mark.process
def test_a_job_is_released_when_it_is_recorded(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    events = ledger.read_lines(plan.folder / ledger.LEDGER_NAME)
    assert [event["event"] for event in events] == ["intend", "record", "release"] * 2
    assert [event.get("held") for event in events] == [None, True, None] * 2
    assert {event["token"] for event in events[:2]} == {slurm.tokens["1_0"]}
    assert events[1]["cluster"] == "site"
    assert (ledger.read_ledger(plan.folder).open_tokens, ledger.read_ledger(plan.folder).held) == ({}, ())
    started_once(slurm, plan)


@pytest.mark.process
def test_a_submission_killed_after_sbatch(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    slurm.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        launch(plan, LOADED, max_ranks=None)
    slurm.error = None
    launch(plan, LOADED, max_ranks=None)
    assert "note: cancelled what an interrupted submission has left on hold: 1\n" in capsys.readouterr().err
    started_once(slurm, plan)
    launch(plan, LOADED, max_ranks=None)
    started_once(slurm, plan)


@pytest.mark.process
def test_a_submission_killed_before_the_release(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    slurm.release_error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        launch(plan, LOADED, max_ranks=None)
    slurm.release_error = None
    launch(plan, LOADED, max_ranks=None)
    assert "note: released what an interrupted submission has left on hold: 1\n" in capsys.readouterr().err
    started_once(slurm, plan)
    assert len(slurm.submitted) == 2


@pytest.mark.process
@pytest.mark.parametrize("arrives", ["at once", "later", "never"])
def test_a_lost_answer_of_sbatch(slurm: Slurm, tmp_path: Path, arrives: str) -> None:
    """The commonest fault of a busy controller: the job may exist, also some time later."""
    plan = plan_of(tmp_path)
    slurm.error = UserError("sbatch refused 2 runs of 1x1: Socket timed out on send/recv operation")
    slurm.is_shown = arrives == "at once"
    hint = "it had accepted, 1, was on hold" if arrives == "at once" else "what it may have accepted is on hold"
    with pytest.raises(UserError, match=hint):
        launch(plan, LOADED, max_ranks=None)
    slurm.error, slurm.is_shown = None, True
    if arrives == "never":
        slurm.states.clear()
    launch(plan, LOADED, max_ranks=None)
    started_once(slurm, plan)


@pytest.mark.process
def test_another_host_takes_a_submission_over(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On some file systems the lock of one host does not stop another."""
    plan = plan_of(tmp_path)
    sbatch = slurm.sbatch

    def overtaken(own: Plan, group: JobGroup, token: str) -> list[str]:
        job_ids = sbatch(own, group, token)
        ledger.give_up(own.folder, [run.run_id for run in group.runs], 1.0, "the submission was interrupted")
        return job_ids

    monkeypatch.setattr(jobs.slurm.submit, "_sbatch", overtaken)
    with pytest.raises(UserError, match="another sweep submit has taken over these runs"):
        launch(plan, LOADED, max_ranks=None)
    assert set(slurm.states.values()) == {State.CANCELLED}
    assert not ledger.read_ledger(plan.folder).jobs


@pytest.mark.process
def test_a_job_that_cannot_be_released_stays_known(slurm: Slurm, tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    slurm.release_error = UserError("scontrol release 1 failed: busy")
    with pytest.raises(UserError, match=r"scontrol release 1 failed: busy; on hold: 1, 2 \(submit again"):
        launch(plan, LOADED, max_ranks=None)
    assert len(slurm.submitted) == 2
    slurm.release_error = None
    launch(plan, LOADED, max_ranks=None)
    started_once(slurm, plan)
    assert len(slurm.submitted) == 2


@pytest.mark.process
def test_a_folder_of_another_user_is_refused(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UserError, match="belongs to another user, whose jobs these are"):
        launch(plan, LOADED, max_ranks=None)
    assert not slurm.submitted


@pytest.mark.process
def test_a_hold_of_the_user_stays(slurm: Slurm, tmp_path: Path) -> None:
    runs = expand(parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/nowhere"))
    profile = ClusterProfile.model_validate({"sbatch": {"hold": True}})
    plan = make_plan("s", runs, Cluster("site", "slurm", profile), tmp_path / "s" / "site")
    for _ in range(2):
        launch(plan, LOADED, max_ranks=None)
        assert slurm.held == {"1_0", "1_1", "2_0", "2_1"}
    assert len(slurm.submitted) == 2


def finish(folder: SweepFolder) -> list[Path]:
    """Writes the summary of every run, as its ranks do, and returns the files."""
    paths = [folder.run(run["run_id"]) / "summary.json" for run in folder.planned_runs()]
    for path in paths:
        path.write_text('{"steps": 3}')
    return paths


def break_line(path: Path, number: int) -> bytes:
    """Damages one byte of a line of a file, counted from 0, and returns the content before."""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    lines[number] = b"\xff" + lines[number][1:]
    path.write_bytes(b"".join(lines))
    return content


@pytest.mark.process
def test_a_damaged_ledger_repeats_no_finished_run(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.slurm.interrupted, "query_squeue", lambda _, **__: {})
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    launch(plan, LOADED, max_ranks=None)
    slurm.states.update(dict.fromkeys(slurm.states, State.COMPLETED))
    summaries = finish(folder)
    ids = [run.run_id for run in plan.runs]
    path = plan.folder / ledger.LEDGER_NAME
    intact = break_line(path, 1)  # the record of the first group
    with pytest.raises(UserError) as caught:
        launch(plan, LOADED, max_ranks=None)
    assert str(caught.value) == (
        f"{plan.folder}: line 2 of ledger.jsonl is damaged: jobs may be missing;"
        f" 2 runs with a summary would be repeated: {ids[0]}, {ids[1]}"
        " (restore the line; sweep forget RUN removes a run that should run again)"
    )
    path.unlink()  # then the ledger has no damaged line, and no job
    with pytest.raises(UserError, match=r": ledger\.jsonl lacks jobs; 4 runs with a summary would be repeated: "):
        launch(plan, LOADED, max_ranks=None)
    assert (len(slurm.submitted), all(summary.exists() for summary in summaries)) == (2, True)
    path.write_bytes(intact)
    launch(plan, LOADED, max_ranks=None)
    assert len(slurm.submitted) == 2


@pytest.mark.process
def test_a_damaged_second_record_repeats_no_finished_run(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger then has only the first job, which failed."""
    monkeypatch.setattr(jobs.slurm.interrupted, "query_squeue", lambda _, **__: {})
    text = "name: s\nallocations: [1x1]\nbase: {model: bert}\n"
    plan = plan_of(tmp_path, text=text)
    launch(plan, LOADED, max_ranks=None)
    slurm.states["1_0"] = State.FAILED
    launch(plan, LOADED, max_ranks=None)
    finish(SweepFolder(plan.folder))
    break_line(plan.folder / ledger.LEDGER_NAME, 4)  # the record of the second job
    with pytest.raises(UserError, match=r"line 5 of ledger\.jsonl .* 1 run with a summary would be repeated"):
        launch(plan, LOADED, max_ranks=None)
    assert len(slurm.submitted) == 2


@pytest.mark.process
def test_a_damaged_record_cancels_no_job(slurm: Slurm, tmp_path: Path) -> None:
    """Without its record, the token of a submission looks like that of an interrupted one."""
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    break_line(plan.folder / ledger.LEDGER_NAME, 1)
    with pytest.raises(UserError, match="left jobs that would run twice: 1_0, 1_1"):
        launch(plan, LOADED, max_ranks=None)
    assert set(slurm.states.values()) == {State.PENDING}


@pytest.mark.process
def test_damage_stops_no_run_without_a_summary(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs.slurm.interrupted, "query_squeue", lambda _, **__: {})
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    finish(SweepFolder(plan.folder))[0].write_text("{}")  # it cannot be read
    for run in plan.runs[1:]:
        (plan.folder / "runs" / run.run_id / "summary.json").unlink()
    slurm.states.update(dict.fromkeys(slurm.states, State.RUNNING))
    break_line(plan.folder / ledger.LEDGER_NAME, 1)
    launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted[2:] == [[run.run_id for run in plan.groups[0].runs]]
    assert capsys.readouterr().err == "note: line 2 of ledger.jsonl is damaged: jobs may be missing\n"


@pytest.mark.process
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_accounting_repeats_no_finished_run(
    cut: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The states of local runs are only in accounting.jsonl. Without its end, a run with a summary is complete."""
    plan = plan_of(tmp_path, "local")
    folder = SweepFolder(plan.folder)
    sent: list[int] = []
    monkeypatch.setattr(
        "jobs.schedulers.local_scheduler.send_to_local", lambda missing, *_, **__: sent.append(len(missing.runs))
    )
    launch(plan, LOADED, max_ranks=None)
    dead = ledger.QueueProcess(socket.gethostname(), os.getpid(), 1.0)
    ledger.record(folder.path, {run.run_id: f"local-1-{index}" for index, run in enumerate(plan.runs)}, 1.0, dead)
    for state in (State.RUNNING, State.COMPLETED):
        rows = [AccountingRow(f"local-1-{index}", state=state, submit_s=1) for index in range(4)]
        ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in rows])
    summaries = finish(folder)
    capsys.readouterr()
    if cut:
        folder.accounting_file.write_bytes(folder.accounting_file.read_bytes()[:-9])
    else:
        break_line(folder.accounting_file, 6)
    launch(plan, LOADED, max_ranks=None)
    assert (sent, all(summary.exists() for summary in summaries)) == ([4], True)
    assert ("line 7 of accounting.jsonl is damaged" in capsys.readouterr().err) is not cut
    # Without a summary it broke off.
    unfinished = plan.runs[3 if cut else 2]
    (folder.run(unfinished.run_id) / "summary.json").unlink()
    launch(plan, LOADED, max_ranks=None)
    assert sent == [4, 1]


@pytest.mark.process
def test_a_damaged_end_of_a_requeued_run_repeats_nothing(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It failed and was requeued by hand. sacct has purged it, and the line of its second end is damaged."""
    plan = plan_of(tmp_path)
    folder = SweepFolder(plan.folder)
    launch(plan, LOADED, max_ranks=None)
    finish(folder)
    ends = [(State.FAILED, 1), (State.COMPLETED, 3)]
    rows = [
        AccountingRow(job_id, state=state, submit_s=submit_s, start_s=submit_s, end_s=submit_s + 1)
        for state, submit_s in ends
        for job_id in slurm.states
    ]
    ledger.append_lines(folder.accounting_file, [json.dumps(row.to_json()) for row in rows])
    break_line(folder.accounting_file, 4)
    slurm.is_shown = False
    monkeypatch.setattr(jobs.schedulers.slurm_scheduler, "query_sacct", lambda *_, **__: ())
    with pytest.raises(UserError, match=r": line 5 of accounting\.jsonl is damaged: .*; 1 run with a summary would be"):
        launch(plan, LOADED, max_ranks=None)


@pytest.mark.process
def test_a_damaged_ledger_loses_no_run_of_a_trial(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs of a submission with --set stay in the results, although its lines are damaged."""
    monkeypatch.setattr(jobs.slurm.interrupted, "query_squeue", lambda _, **__: {})
    folder = SweepFolder(tmp_path / "s" / "site")

    def submit(overrides: dict[str, str]) -> int:
        sweep = parse_sweep(parse_yaml(SWEEP, "s.yaml"), "/nowhere", overrides)
        plan = make_plan("s", expand(sweep), Cluster("site", "slurm", ClusterProfile.model_validate({})), folder.path)
        launch(plan, sweep, max_ranks=None)
        planned = folder.planned_runs()
        assert not any(run.get("dropped") for run in planned)
        return len(planned)

    assert submit({}) == 4
    first = len((folder.path / ledger.LEDGER_NAME).read_bytes().splitlines())
    assert submit({"weight_decay": "0.1"}) == 8
    for number in range(first, len((folder.path / ledger.LEDGER_NAME).read_bytes().splitlines())):
        break_line(folder.path / ledger.LEDGER_NAME, number)
    assert submit({}) == 8


@pytest.mark.process
def test_a_run_of_an_unknown_state_is_not_repeated(slurm: Slurm, tmp_path: Path) -> None:
    """Such as the state of a later release of Slurm: the job may wait or run."""
    launch(plan_of(tmp_path), LOADED, max_ranks=None)
    slurm.states["1_0"] = State.UNKNOWN
    slurm.states["1_1"] = State.FAILED
    (again,) = (run_id for run_id in slurm.submitted[0] if slurm.run_dirs["1_1"].name == run_id)
    launch(plan_of(tmp_path), LOADED, max_ranks=None)
    assert slurm.submitted[2:] == [[again]]


@pytest.mark.process
@pytest.mark.parametrize("field", ["dataset", "checkpoint"])
def test_two_sweeps_of_one_name_are_refused(field: str, slurm: Slurm, tmp_path: Path) -> None:
    plans = []
    for name in ("a", "b"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "train.csv").write_text(name)
        (tmp_path / name / "s.yaml").write_text(
            f"name: s\nallocations: [1x1]\nbase: {{model: bert, {field}: ./data}}\n"
        )
        sweep = load_sweep(tmp_path / name / "s.yaml")
        folder = tmp_path / "runs" / "s" / "site"
        plans.append(make_plan("s", expand(sweep), Cluster("site", "slurm", ClusterProfile.model_validate({})), folder))
    assert plans[0].runs[0].run_id == plans[1].runs[0].run_id
    launch(plans[0], LOADED, max_ranks=None)
    with pytest.raises(UserError, match=rf"'s' was submitted with {field} '.*/a/data', but now has '.*/b/data'"):
        launch(plans[1], LOADED, max_ranks=None)


@pytest.mark.process
@pytest.mark.parametrize("field", ["dataset", "checkpoint"])
def test_moved_data_are_no_other_data(
    field: str, slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkout was moved: finished runs stay finished."""
    for name in ("a", "b"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "train.csv").write_text("text,label\n")
        (tmp_path / name / "s.yaml").write_text(
            f"name: s\nallocations: [1x1]\nbase: {{model: bert, {field}: ./data}}\n"
        )
        sweep = load_sweep(tmp_path / name / "s.yaml")
        folder = tmp_path / "runs" / "s" / "site"
        plan = make_plan("s", expand(sweep), Cluster("site", "slurm", ClusterProfile.model_validate({})), folder)
        launch(plan, LOADED, max_ranks=None)
        slurm.states.update(dict.fromkeys(slurm.states, State.COMPLETED))
        (tmp_path / name).rename(tmp_path / f"{name}-moved")
    assert len(slurm.submitted) == 1
    note = f"note: {field} was '{tmp_path}/a/data'; '{tmp_path}/b/data' has the same files\n"
    assert capsys.readouterr().err == note


@pytest.mark.process
def test_a_local_command_takes_the_gpus_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key `device` is its own, and `dataset` is no path of ours: nothing is compared at the next submission."""
    queued: list[QueuedRun] = []

    class Queue:
        def __init__(self, _: SweepFolder, runs: list[QueuedRun], *__: Any) -> None:
            queued.extend(runs)

        def run(self, _: Any) -> None:
            pass

    monkeypatch.setattr("jobs.local.local_queue.LocalQueue", Queue)
    text = "name: s\nallocations: [1x2]\ncommand: ./train\nlauncher: torchrun\nbase: {device: cpu, dataset: ./data}\n"
    for seeds in ("seeds: [0]\n", "seeds: [0, 1]\n"):
        sweep = parse_sweep(parse_yaml(text + seeds, "s.yaml"), "/sweeps")
        launch(plan_of(tmp_path, "local", text + seeds), sweep, max_ranks=None, on_poll=lambda: None)
    assert [(run.on_cpu, run.by_node, run.tasks, run.world_size) for run in queued] == [(False, True, 1, 2)] * 2
    assert SweepFolder(tmp_path / "s" / "local").fingerprints() == {}
