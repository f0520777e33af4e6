"""Commands on the runs of a user's own script: what they show, what they refuse, and what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disttrain.records.record_files import failure_name, write_failure, write_json
from jobs.results.drawing.step_lanes import read_timeline
from jobs.slurm.states import State
from jobs.storage.sweep_folder import SweepFolder, prepare_runs
from jobs.submission import resend
from tests.jobs.cli.test_logs_command import write_logs
from tests.jobs.command import Output, Sweep, note
from tests.jobs.script_runs import log, make_scripts, script_run

pytestmark = pytest.mark.process


@pytest.fixture
def scripts(submitted: SweepFolder) -> SweepFolder:
    """A submitted sweep of a 1x1 and a 2x1 run, which start train.py."""
    make_scripts(submitted)
    return submitted


def test_a_script_that_logs_nothing_has_its_row(sweep: Sweep, scripts: SweepFolder) -> None:
    note(scripts, State.COMPLETED, State.RUNNING)
    done, _ = (run["run_id"] for run in scripts.planned_runs())
    write_json(scripts.run(done) / "summary.json", {"steps": 0, "metrics": {}})
    rows = json.loads(sweep("status", "--json").out)["runs"]
    assert (rows[0]["state"], rows[0]["steps"], rows[0]["metrics"]) == ("COMPLETED", 0, {})
    assert sweep("collect", "--csv").exit_code == 0


def test_logs_of_torchrun_are_of_nodes(sweep: Sweep, submitted: SweepFolder) -> None:
    make_scripts(submitted, launcher="torchrun")
    logs = write_logs(submitted)
    assert sweep("logs", "2x1", "--rank", "0").out == f"==> {logs}/9_0_log.out <==\nout 0\n"
    name = submitted.planned_runs()[1]["run_id"]
    hint = "torchrun starts the ranks: all ranks of a node share one log"
    error = f"error: --rank: node 2 of {name} (2x1): its nodes are 0 to 1 ({hint})\n"
    assert sweep("logs", "2x1", "--rank", "2") == Output(2, "", error)


def test_logs_of_the_rank_that_failed(sweep: Sweep, scripts: SweepFolder) -> None:
    logs = write_logs(scripts)
    write_failure(scripts.run(scripts.planned_runs()[1]["run_id"]), 1, ValueError("boom"))
    assert sweep("logs", "2x1").out.startswith(f"==> {logs}/9_1_log.out <==\n")
    assert "its ranks are 0 to 1\n" in sweep("logs", "2x1", "--rank", "2").err


def test_stacks_are_not_requested(sweep: Sweep, scripts: SweepFolder) -> None:
    """The signal would end the script."""
    note(scripts, State.RUNNING, State.RUNNING)
    name = scripts.planned_runs()[0]["run_id"]
    refused = sweep("stacks", "1x1")
    assert (refused.exit_code, refused.err) == (
        2,
        f"error: {name} (1x1) runs a script of yours, which does not write its stacks for sweep stacks"
        " (py-spy dump on its node, or faulthandler.register in the script, shows them)\n",
    )


def users_files(run_dir: Path) -> list[Path]:
    """Writes what a script may write into its folder, under the names of our own files too."""
    names = (
        "checkpoints/attempt-00001-step-000000005.pt", "checkpoints/attempt-00001-step-000000005.json",
        "checkpoints/last.pt", "model/weights", ".model.77/weights", ".cache.12", "earlier/1/model/weights",
        "earlier/1/checkpoints/last.json", "all_results.json",
    )  # fmt: skip
    for name in names:
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("x")
    return [run_dir / name for name in names]


def test_clean_leaves_the_files_of_a_script(sweep: Sweep, scripts: SweepFolder) -> None:
    note(scripts, State.COMPLETED, State.FAILED)
    kept = []
    for run in scripts.planned_runs():
        run_dir = scripts.run(run["run_id"])
        kept += [*users_files(run_dir), log(run_dir, [{"loss": 1.0}])]
        (run_dir / ".summary.json.99").touch()
    assert sweep("clean", "--all", "--models", "--yes").out.endswith("removed 0 B\n")
    assert all(path.is_file() for path in kept)
    left = [path for run in scripts.planned_runs() for path in scripts.run(run["run_id"]).glob(".summary.*")]
    assert left == [], "it is ours"


def test_a_retry_keeps_the_files_and_a_rerun_moves_them(scripts: SweepFolder) -> None:
    """A script resumes from its own files; a run that starts from the beginning must not find them."""
    run = scripts.planned_runs()[0]
    run_dir = scripts.run(run["run_id"])
    kept = [*users_files(run_dir), log(run_dir, [{"loss": 1.0}])]
    for name in ("summary.json", "stage.json", failure_name(0)):
        (run_dir / name).write_text("{}")
    prepare_runs(scripts, [run])
    assert all(path.is_file() for path in kept)
    assert not any((run_dir / name).exists() for name in ("summary.json", "stage.json", failure_name(0)))
    resend._move_result(run_dir, resend._next_folder(run_dir))
    assert [path.name for path in run_dir.iterdir()] == ["earlier"]
    assert (run_dir / "earlier" / "2" / "checkpoints" / "last.pt").is_file()
    assert (run_dir / "earlier" / "2" / "script-metrics" / "rank00000-attempt001.jsonl").is_file()


def test_nothing_of_a_script_is_drawn(sweep: Sweep, scripts: SweepFolder) -> None:
    note(scripts, State.COMPLETED, State.COMPLETED)
    name = scripts.planned_runs()[0]["run_id"]
    hint = "the steps of your own script are not timed"
    assert sweep("figures") == Output(2, "", f"error: s on local has nothing to draw ({hint})\n")
    assert sweep("figures", "--run", "1x1").err == f"error: run {name} (1x1) has nothing to draw ({hint})\n"


def test_a_mixed_sweep_says_what_is_not_drawn(sweep: Sweep, submitted: SweepFolder) -> None:
    note(submitted, State.COMPLETED, State.COMPLETED)
    first, second = submitted.planned_runs()
    first["train"]["model"] = "link"
    plan = json.loads(submitted.plan_file.read_text())
    submitted.write_plan({**plan, "runs": [first, script_run(second["run_id"])]})
    error = sweep("figures").err
    assert error.startswith("note: not drawn: 1 run of your own script, whose steps are not timed\n")


def test_a_timeline_of_a_script(scripts: SweepFolder) -> None:
    run_dir = scripts.run(scripts.planned_runs()[0]["run_id"])
    with pytest.raises(Exception, match="is the run of a command: the steps of its script are not timed"):
        read_timeline(run_dir, "1x1")
