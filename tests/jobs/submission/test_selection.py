"""Which runs a submission leaves out, and what it says of them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import Plan, make_plan
from jobs.planning.sweep_file import parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.states import State
from jobs.storage import ledger
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.launch import launch, launch_rest
from tests.jobs.submission.fake_slurm import LOADED, Slurm, plan_of

pytestmark = pytest.mark.process


def plan_with(root: Path, **profile: object) -> Plan:
    cluster = Cluster("site", "slurm", ClusterProfile.model_validate(profile))
    return make_plan("s", expand(LOADED), cluster, root / "s" / "site")


def test_a_waiting_run_with_another_request_is_named_and_replaced(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of four runs has started: it continues with its request."""
    launch(plan_with(tmp_path, time="10:00:00", setup=("module load cuda",)), LOADED, max_ranks=None)
    slurm.states["1_0"] = State.RUNNING
    now = plan_with(tmp_path, time="30", partition="gpu")
    capsys.readouterr()
    launch(now, LOADED, max_ranks=None)
    waiting = [run.run_id for run in now.runs[1:]]
    assert capsys.readouterr().err == (
        "note: 3 runs wait with another request than the sweep has now "
        f"(time 600, now 30; setup; partition None, now gpu): {', '.join(waiting)}; --replace sends them again\n"
    )
    assert len(slurm.submitted) == 2
    launch(now, LOADED, max_ranks=None, replace=True)
    output = capsys.readouterr()
    assert output.err == f"note: cancelled 3 runs that waited with another request: {', '.join(waiting)}\n"
    assert output.out.splitlines()[0] == "s on site: submitting 3 of 4 runs (0 done, 1 queued or running)"
    assert slurm.cancelled == [(["1_[1]", "2_[0-1]"], True)]
    assert slurm.submitted[2:] == [waiting[:1], waiting[1:]]
    launch(now, LOADED, max_ranks=None, replace=True)
    assert len(slurm.submitted) == 4


def test_another_number_of_running_tasks_is_no_other_request(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(plan_with(tmp_path), LOADED, max_ranks=None)
    capsys.readouterr()
    launch(plan_with(tmp_path, max_running=2), LOADED, max_ranks=None)
    assert capsys.readouterr().err == ""


def test_a_timeout_without_a_checkpoint_is_noted(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    slurm.states.update(dict.fromkeys(slurm.states, State.TIMEOUT))
    first, *others = [run.run_id for run in plan.runs]
    checkpoints = SweepFolder(plan.folder).run(first) / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "attempt-00001-step-000000005.json").touch()
    capsys.readouterr()
    launch(plan, LOADED, max_ranks=None)
    assert capsys.readouterr().err == (
        f"note: 3 runs have reached the time limit without a checkpoint: {', '.join(others)}; the limit is the same, "
        "so raise time under slurm, or set checkpoint_every\n"
    )
    slurm.states.update(dict.fromkeys(slurm.states, State.TIMEOUT))
    launch(plan_with(tmp_path, time="2:00:00"), LOADED, max_ranks=None)
    assert capsys.readouterr().err == ""


def test_cancelled_runs_stay_cancelled(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    launch(plan, LOADED, max_ranks=None)
    slurm.states["1_0"] = State.CANCELLED  # by scancel: this run is sent again
    slurm.states["1_1"] = State.CANCELLED
    ledger.cancel(plan.folder, [plan.runs[1].run_id], 2.0)
    capsys.readouterr()
    launch(plan, LOADED, max_ranks=None)
    assert slurm.submitted[2:] == [[plan.runs[0].run_id]]
    assert capsys.readouterr().err == "note: 1 run was cancelled by sweep cancel; sweep retry sends it again\n"


def test_what_does_not_fit_is_sent_later(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slurm refuses an array that is over the limit as a whole."""
    text = "name: s\nallocations: [1x1]\nbase: {model: bert}\nseeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
    plan = plan_of(tmp_path, text=text)
    ids = [run.run_id for run in plan.runs]
    slurm.limit = 7
    unsent = launch(plan, LOADED, max_ranks=None)
    assert [len(group) for group in slurm.submitted] == [5, 2]
    assert (sorted(unsent), list(chain(*slurm.submitted))) == (sorted(ids[7:]), ids[:7])
    limit = "3 runs wait for the limit of jobs that Slurm accepts (AssocMaxSubmitJobLimit)"
    assert capsys.readouterr().err.splitlines() == [
        f"note: {limit}; the next sweep submit sends them, and submit --wait does it by itself"
    ]
    assert launch(plan, LOADED, max_ranks=None) == set(ids[7:])
    slurm.states.update({f"1_{index}": State.COMPLETED for index in range(5)})
    assert launch(plan, LOADED, max_ranks=None) == frozenset()
    assert list(chain(*slurm.submitted)) == ids
    assert not slurm.held


def test_few_calls_of_sbatch_are_refused(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of the same account, QOS and partition share a limit."""
    calls: list[int] = []
    sbatch = slurm.sbatch
    monkeypatch.setattr(
        "jobs.slurm.submit._sbatch",
        lambda plan, group, token: (
            calls.append(len(group.runs)) or sbatch(plan, group, token)  # type: ignore[func-returns-value]
        ),
    )
    seeds = ", ".join(map(str, range(64)))
    text = f"name: s\nallocations: [1x1, 1x2, 2x1]\nbase: {{model: bert}}\nseeds: [{seeds}]\n"
    slurm.limit = 20
    plan = plan_of(tmp_path, text=text)
    assert len(launch(plan, LOADED, max_ranks=None)) == 3 * 64 - 20
    assert calls == [64, 32, 16, 16, 8, 4, 4, 2, 1]


def test_the_rest_is_sent_unless_the_sweep_was_changed(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another shell may submit a corrected file while this one waits for room."""
    slurm.limit = 1
    plan = plan_of(tmp_path)
    unsent = launch(plan, LOADED, max_ranks=None)
    slurm.limit = 2
    rest = launch_rest(plan, LOADED, unsent)
    assert rest is not None
    assert len(rest) == 2
    launch(plan_with(tmp_path, time="5"), LOADED, max_ranks=None)
    before = {path: path.read_bytes() for path in plan.folder.glob("*.json")}
    slurm.limit = 10
    capsys.readouterr()
    assert launch_rest(plan, LOADED, rest) is None
    assert "another submission has changed the sweep" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in plan.folder.glob("*.json")}
    assert len(slurm.submitted) == 2


def test_a_forgotten_run_does_not_stop_the_rest(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.limit = 1
    plan = plan_of(tmp_path)
    unsent = launch(plan, LOADED, max_ranks=None)
    folder = SweepFolder(plan.folder)
    folder.remove_from_plan(sorted(unsent)[:1])
    slurm.limit = 10
    assert launch_rest(plan, LOADED, unsent) == frozenset()
    assert sorted(chain(*slurm.submitted[1:])) == sorted(unsent)[1:]
    left = "note: no longer planned, after another submission or sweep forget: 1 run that did not fit\n"
    assert left in capsys.readouterr().err
    folder.remove_from_plan(unsent)
    assert launch_rest(plan, LOADED, unsent) is None


def test_arrays_are_not_larger_than_the_cluster_accepts(slurm: Slurm, tmp_path: Path) -> None:
    """MaxArraySize limits the index, which begins with 0."""
    text = "name: s\nallocations: [1x1]\nbase: {model: bert}\nseeds: [0, 1, 2, 3, 4, 5, 6]\n"
    slurm.max_array_size = 3
    plan = plan_of(tmp_path, text=text)
    assert launch(plan, LOADED, max_ranks=None) == frozenset()
    assert [len(group) for group in slurm.submitted] == [3, 3, 1]


def test_the_rest_of_a_command_that_was_changed(slurm: Slurm, tmp_path: Path) -> None:
    """How a command is started is no part of a run's id."""
    text = "name: s\nallocations: [1x1]\ncommand: ./train\nseeds: [0, 1]\n"
    changed = text + 'flags: "{key}={value}"\n'
    sweeps = [parse_sweep(parse_yaml(content, "s.yaml"), "/sweeps") for content in (text, changed)]
    slurm.limit = 1
    plans = [plan_of(tmp_path, text=content) for content in (text, changed)]
    unsent = launch(plans[0], sweeps[0], max_ranks=None)
    assert len(unsent) == 1
    launch(plans[1], sweeps[1], max_ranks=None)
    slurm.limit = 10
    assert launch_rest(plans[0], sweeps[0], unsent) is None
    assert launch_rest(plans[1], sweeps[1], unsent) == frozenset()
