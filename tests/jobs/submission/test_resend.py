"""sweep cancel, retry and rerun: each run as often as the user wants."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.planning.plan import Plan
from jobs.planning.request_changes import RequestChanges
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.states import State
from jobs.storage.ledger import read_ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.cancellation import cancel_runs, choose
from jobs.submission.failed_runs import FailedRuns
from jobs.submission.launch import launch
from jobs.submission.resend import resend
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process


@pytest.fixture
def plan(slurm: Slurm, tmp_path: Path) -> Plan:
    """A plan of four runs that are sent: jobs 1_0, 1_1, 2_0, 2_1."""
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    return plan


def cancel(folder: SweepFolder, *texts: str, every: bool = False, dropped: bool = False) -> list[str]:
    """Cancels runs, and returns what was said of those that had ended."""
    chosen = choose(folder, texts, every=every, dropped=dropped)
    if chosen.active:
        cancel_runs(folder, chosen.active)
    return chosen.ended


def test_cancelled_runs_end_and_are_not_sent_again(
    slurm: Slurm, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, ids = SweepFolder(plan.folder), [run.run_id for run in plan.runs]
    slurm.states["1_0"] = State.COMPLETED
    slurm.states["1_1"] = State.RUNNING
    capsys.readouterr()
    assert cancel(folder, *ids[:3]) == [f"{ids[0]} (1x1 seed=0) COMPLETED"]
    assert slurm.cancelled == [(["1_[1]", "2_[0]"], False)]
    out = capsys.readouterr().out
    assert out == f"cancelled 2 runs: {ids[1]} (1x1 seed=1), {ids[2]} (2x1 seed=0); sweep retry sends them again\n"
    launch(plan, LOADED, max_ranks=None)
    assert len(slurm.submitted) == 2
    resend(folder, [], from_start=False)
    assert slurm.submitted[2:] == [[ids[1]], [ids[2]]]
    assert read_ledger(folder.path).cancelled == frozenset()
    # Their requests are those of the submission.
    jobs = read_ledger(folder.path).jobs
    assert jobs[ids[1]][-1].request == jobs[ids[1]][0].request


def test_a_run_that_was_not_sent_can_be_cancelled(slurm: Slurm, tmp_path: Path) -> None:
    slurm.limit = 2
    plan = plan_of(tmp_path)
    unsent = launch(plan, LOADED, max_ranks=None)
    folder = SweepFolder(plan.folder)
    assert cancel(folder, every=True) == []
    slurm.limit = 10
    assert launch(plan, LOADED, max_ranks=None) == frozenset()
    assert len(slurm.submitted) == 1
    resend(folder, sorted(unsent)[:1], from_start=False)
    assert slurm.submitted[1:] == [sorted(unsent)[:1]]


def test_dropped_runs_are_cancelled(slurm: Slurm, plan: Plan) -> None:
    text = "name: s\nallocations: [1x1]\nbase: {model: bert, max_steps: 3}\nseeds: [0, 1]\n"
    folder = SweepFolder(plan.folder)
    shorter = plan_of(folder.path.parents[1], text=text)
    launch(shorter, parse_sweep(parse_yaml(text, "s.yaml"), "/nowhere"), max_ranks=None)
    assert cancel(folder, dropped=True) == []
    assert slurm.states == {
        "1_0": State.PENDING, "1_1": State.PENDING, "2_0": State.CANCELLED, "2_1": State.CANCELLED,
    }  # fmt: skip


def test_rerun_keeps_the_earlier_result(slurm: Slurm, plan: Plan) -> None:
    folder, ids = SweepFolder(plan.folder), [run.run_id for run in plan.runs]
    run_dir = folder.run(ids[0])
    for number in (1, 2):
        slurm.states[list(slurm.states)[0 if number == 1 else -1]] = State.COMPLETED
        (run_dir / "checkpoints").mkdir()
        (run_dir / f"result-{number}").touch()
        resend(folder, [ids[0]], from_start=True)
        earlier = sorted(path.name for path in (run_dir / "earlier" / str(number)).iterdir())
        assert earlier == ["checkpoints", f"result-{number}", "run.json", "summary.json"]
        assert sorted(path.name for path in run_dir.iterdir()) == ["earlier", "run.json"]
    assert slurm.submitted[2:] == [[ids[0]], [ids[0]]]
    assert len(read_ledger(folder.path).jobs[ids[0]]) == 3


def test_what_is_refused(slurm: Slurm, plan: Plan) -> None:
    folder, ids = SweepFolder(plan.folder), [run.run_id for run in plan.runs]
    slurm.states["1_0"] = State.COMPLETED
    with pytest.raises(UserError, match=r"runs that have not ended cannot be sent again: \S+ \(1x1 seed=1\) PENDING"):
        resend(folder, [ids[1]], from_start=True)
    with pytest.raises(UserError, match=r"sweep retry is for failed and cancelled runs; done: .*sweep rerun"):
        resend(folder, [ids[0]], from_start=False)
    assert len(slurm.submitted) == 2
    request = folder.request_file.read_text()
    folder.request_file.unlink()
    with pytest.raises(UserError, match=r"request.json' is missing \(sweep submit writes it\)"):
        resend(folder, [ids[0]], from_start=True)
    before = json.loads(request)
    damaged: list[Any] = [[], {**before["cluster"], "profile": []}, {**before["cluster"], "profile": None}, {"kind": 3}]
    for cluster in damaged:
        folder.request_file.write_text(json.dumps({**before, "cluster": cluster}))
        with pytest.raises(UserError, match=r"request\.json is damaged: "):
            resend(folder, [ids[0]], from_start=True)
    folder.request_file.write_text(request)
    planned = json.loads(folder.plan_file.read_text())
    planned["runs"][0]["train"]["later_field"] = 1
    folder.write_plan(planned)
    with pytest.raises(UserError, match=r"the runs were planned by another release: .*later_field"):
        resend(folder, [ids[0]], from_start=True)
    assert (folder.run(ids[0]) / "summary.json").exists()
    assert not (folder.run(ids[0]) / "earlier").exists()


def test_a_rerun_that_is_refused_keeps_the_result(slurm: Slurm, plan: Plan) -> None:
    """The run is still done, and no submission repeats it."""
    folder, ids = SweepFolder(plan.folder), [run.run_id for run in plan.runs]
    slurm.states["1_0"] = State.COMPLETED
    (folder.run(ids[0]) / "model").mkdir()
    slurm.refused = "1x1"
    with pytest.raises(UserError, match="sbatch refused it"):
        resend(folder, [ids[0]], from_start=True)
    slurm.refused, slurm.limit = "", 0
    resend(folder, [ids[0]], from_start=True)
    files = sorted(path.name for path in folder.run(ids[0]).iterdir())
    assert files == ["earlier", "model", "run.json", "summary.json"]
    slurm.limit = 10
    launch(plan, LOADED, max_ranks=None)
    assert len(slurm.submitted) == 2


def test_retried_runs_that_do_not_fit_are_not_cancelled(slurm: Slurm, plan: Plan) -> None:
    folder = SweepFolder(plan.folder)
    cancel(folder, every=True)
    slurm.limit = 1
    resend(folder, [], from_start=False)
    assert read_ledger(folder.path).cancelled == frozenset()
    slurm.limit = 10
    launch(plan, LOADED, max_ranks=None)
    assert len(list(chain(*slurm.submitted))) == 8


def test_a_run_that_was_never_sent_has_no_retry(slurm: Slurm, tmp_path: Path) -> None:
    slurm.limit = 2
    plan = plan_of(tmp_path)
    unsent = launch(plan, LOADED, max_ranks=None)
    with pytest.raises(UserError, match=r"never submitted: .* \(sweep submit sends them\)"):
        resend(SweepFolder(plan.folder), sorted(unsent), from_start=False)


def test_a_retry_warns_of_the_same_time_limit(slurm: Slurm, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    slurm.states["1_0"] = State.TIMEOUT
    capsys.readouterr()
    resend(SweepFolder(plan.folder), [plan.runs[0].run_id], from_start=False)
    assert "note: 1 run has reached the time limit without a checkpoint: " in capsys.readouterr().err


def test_a_changed_request_is_for_this_submission(slurm: Slurm, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """The ledger has it, request.json has not, and the run keeps its id."""
    folder, run_id = SweepFolder(plan.folder), plan.runs[0].run_id
    request = folder.request_file.read_text()
    slurm.states["1_0"] = State.TIMEOUT
    capsys.readouterr()
    changes = RequestChanges(("node17",), time="2:00:00")
    resend(folder, [], from_start=False, changes=changes)
    output = capsys.readouterr()
    sent = "s on site: sending 1 of 4 runs again, with --time 2:00:00 --exclude node17"
    assert (output.out.splitlines()[0], output.err) == (sent, "")
    before, changed = (job.request for job in read_ledger(folder.path).jobs[run_id])
    options = {"requeue": True, "exclude": "node17"}
    assert changed == {**(before or {}), "time": 120, "additional_parameters": options}
    assert folder.request_file.read_text() == request
    # A submission neither sends it again, nor is silent about its request.
    launch(plan, LOADED, max_ranks=None)
    note = "note: 1 run waits with another request than the sweep has now (time 120, now 60; "
    assert capsys.readouterr().err.startswith(note)
    assert slurm.submitted[2:] == [[run_id]]
    # The next retry has the request of the sweep.
    slurm.states["3_0"] = State.FAILED
    resend(folder, [], from_start=False)
    assert read_ledger(folder.path).jobs[run_id][-1].request == before


def test_a_retry_by_state(slurm: Slurm, plan: Plan) -> None:
    slurm.states |= {"1_0": State.TIMEOUT, "1_1": State.FAILED, "2_0": State.NODE_FAIL}
    folder, ids = SweepFolder(plan.folder), [run.run_id for run in plan.runs]
    resend(folder, [], from_start=False, only=FailedRuns(State.NODE_FAIL))
    assert slurm.submitted[2:] == [[ids[2]]]
    resend(folder, ids[:2], from_start=False, only=FailedRuns(State.FAILED, "No Rank reported"))
    assert slurm.submitted[3:] == [[ids[1]]]
    resend(folder, [], from_start=False, only=FailedRuns(State.TIMEOUT, "out of memory"))
    assert slurm.submitted[4:] == []


def test_changed_runs_that_do_not_fit(slurm: Slurm, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    """A submission would send them with the request of the sweep."""
    slurm.states["1_0"] = State.FAILED
    slurm.limit = 0
    capsys.readouterr()
    resend(SweepFolder(plan.folder), [], from_start=False, changes=RequestChanges(partition="big"))
    assert "; sweep retry with the same changes sends it later" in capsys.readouterr().err


def test_jobs_of_another_cluster_are_not_cancelled(slurm: Slurm, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is that of another job here."""
    monkeypatch.setattr("jobs.schedulers.slurm_scheduler.cluster_name", lambda **_: "other")
    folder = SweepFolder(plan.folder)
    with pytest.raises(UserError, match=r"job 1_0 is on cluster site; the Slurm of this host is other"):
        cancel(folder, every=True)
    assert (slurm.cancelled, read_ledger(folder.path).cancelled) == ([], frozenset())


def test_the_request_is_private(plan: Plan) -> None:
    """Lines of `setup` may have secrets."""
    assert SweepFolder(plan.folder).request_file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_interrupted_move_is_taken_back(
    moment: str, number: int, slurm: Slurm, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C before or after one of the three files was moved. The result is complete again."""
    folder, run_id = SweepFolder(plan.folder), plan.runs[0].run_id
    slurm.states["1_0"] = State.COMPLETED
    (folder.run(run_id) / "metrics-rank00000.jsonl").touch()
    (folder.run(run_id) / "summary.json").write_text('{"steps": 3}')
    rename, calls = Path.rename, []

    def interrupted(path: Path, target: Path) -> Path:
        calls.append(path.name)
        if len(calls) == number and moment == "before":
            raise KeyboardInterrupt
        moved = rename(path, target)
        if len(calls) == number:
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            resend(folder, [run_id], from_start=True)
    names = ["earlier", "metrics-rank00000.jsonl", "run.json", "summary.json"]
    assert sorted(path.name for path in folder.run(run_id).iterdir()) == names
    assert list((folder.run(run_id) / "earlier").iterdir()) == []
    assert calls[2:] == ["summary.json"][: len(calls[2:])]
    assert len(slurm.submitted) == 2


@pytest.mark.parametrize(("changes", "is_said"), [(RequestChanges(), True), (RequestChanges(("node17",)), False)])
def test_a_retry_proposes_to_leave_out_a_node(
    changes: RequestChanges, is_said: bool, slurm: Slurm, plan: Plan, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = "4 of 5 failed runs used node17: sweep retry --exclude node17 leaves it out"
    monkeypatch.setattr("jobs.submission.resend.failure_patterns", lambda rows: [line] * (len(rows) == 4))
    slurm.states = dict.fromkeys(slurm.states, State.FAILED)
    resend(SweepFolder(plan.folder), [], from_start=False, changes=changes)
    assert (f"note: {line}\n" in capsys.readouterr().err) == is_said


def test_a_command_is_sent_again_as_it_was(slurm: Slurm, tmp_path: Path) -> None:
    """Its values, and how it is started: the sweep file may say something else now."""
    text = """\
name: s
allocations: [2x2]
command: ./train --data '/my data'
flags: "{key}={value}"
switches: [amp]
launcher: torchrun --max-restarts 1
base: {amp: true, text: "it's $5, é", layers: [1, 2.0], model: link}
seeds: [0, 1]
"""
    plan = plan_of(tmp_path, text=text)
    sweep = parse_sweep(parse_yaml(text, "s.yaml"), "/sweeps")
    launch(plan, sweep, max_ranks=None)
    folder = SweepFolder(plan.folder)
    files = [folder.run(run.run_id) / "run.json" for run in plan.runs]
    before = [json.loads(path.read_text()) for path in files]
    assert before[0]["train"]["text"] == "it's $5, é"
    slurm.states |= {"1_0": State.FAILED, "1_1": State.COMPLETED}
    resend(folder, [], from_start=False)
    resend(folder, [plan.runs[1].run_id], from_start=True)
    assert [group.runs[0].config for group in slurm.groups[1:]] == [run.config for run in plan.runs]
    assert [group.parameters for group in slurm.groups[1:]] == [plan.groups[0].parameters] * 2
    after = [json.loads(path.read_text()) for path in files]
    assert [list(run["train"].items()) for run in after] == [list(run["train"].items()) for run in before]
    assert [run["script"] for run in after] == [run["script"] for run in before]


def test_nobody_knows_whether_a_script_has_a_checkpoint(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "name: s\nallocations: [1x1]\ncommand: ./train\n"
    plan = plan_of(tmp_path, text=text)
    launch(plan, parse_sweep(parse_yaml(text, "s.yaml"), "/sweeps"), max_ranks=None)
    slurm.states["1"] = slurm.states["1_0"] = State.TIMEOUT
    resend(SweepFolder(plan.folder), [plan.runs[0].run_id], from_start=False)
    assert len(slurm.submitted) == 2
    assert "checkpoint" not in capsys.readouterr().err
