"""Which code a run starts: after an edit, a second submission, a retry, a rerun, and in the debugger."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from jobs.planning.cluster import Cluster, with_changes
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.expand import expand
from jobs.planning.plan import Plan, make_plan
from jobs.planning.sweep_file import Sweep, parse_sweep
from jobs.planning.yaml_file import parse_yaml
from jobs.slurm.states import State
from jobs.storage import code_snapshot, sweep_folder
from jobs.storage.ledger import read_ledger
from jobs.storage.removable import leftovers
from jobs.storage.sweep_folder import SweepFolder
from jobs.submission.debug_run import debug_run
from jobs.submission.launch import debug, launch
from jobs.submission.resend import resend
from jobs.submission.run_code import copy_code
from jobs.submission.smoke import SmokeGate
from tests.jobs.storage.test_code_state import git
from tests.jobs.submission.fake_slurm import Slurm

pytestmark = pytest.mark.process

COMMAND = "name: s\nallocations: [1x1, 2x1]\ncommand: python train.py\n"
FAMILY = "name: s\nallocations: [1x1]\nbase: {model: 'mine:Family', dataset: ./data}\n"
FAMILY_TEXT = "class Family: pass\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout, whose folder `work` is the working directory."""
    work = tmp_path / "project" / "work"
    (work / "data").mkdir(parents=True)
    (work / "train.py").write_text("old")
    (work / "mine.py").write_text(FAMILY_TEXT)
    git(work.parent, "init", "--quiet")
    monkeypatch.chdir(work)
    return work.parent


def submission(root: Path, text: str, **profile: str) -> tuple[Plan, Sweep]:
    sweep = parse_sweep(parse_yaml(text, "s.yaml"), str(Path.cwd()))
    cluster = with_changes(Cluster("site", "slurm", ClusterProfile.model_validate(profile)), sweep)
    return make_plan("s", expand(sweep), cluster, root / "s" / "site"), sweep


def submit(root: Path, text: str = COMMAND, **profile: str) -> SweepFolder:
    plan, sweep = submission(root, text, **profile)
    launch(plan, sweep, max_ranks=None)
    return SweepFolder(plan.folder)


def described(folder: SweepFolder) -> list[dict[str, Any]]:
    """Each run.json, in the order of the plan."""
    return [json.loads((folder.run(run["run_id"]) / "run.json").read_text()) for run in folder.planned_runs()]


def started(folder: SweepFolder) -> list[str]:
    """The script that each run starts."""
    return [Path(run["script"]["working_dir"], "train.py").read_text() for run in described(folder)]


def test_an_edit_changes_nothing_that_waits(slurm: Slurm, project: Path) -> None:
    folder = submit(project / "runs")
    (project / "work" / "train.py").write_text("new")
    submit(project / "runs", f"{COMMAND}seeds: [1]\n")
    assert started(folder) == ["new", "new", "old", "old"]
    new, _, old, _ = (run["code"] for run in described(folder))
    assert (new["root"], old["root"]) == (str(project), str(project))
    assert new["snapshot"] != old["snapshot"]
    assert {run["script"]["working_dir"] for run in folder.planned_runs()} == {str(project / "work")}
    assert len(list((project / "runs" / ".code").iterdir())) == 2
    assert not list((project / "runs" / ".code").glob("*/runs"))


def test_a_sweep_file_and_a_profile_are_no_code(slurm: Slurm, project: Path) -> None:
    """Another value in them is no other version of the code."""
    (project / "work" / "clusters").mkdir()
    for text in (COMMAND, f"{COMMAND}seeds: [1]\n"):
        (project / "work" / "s.yaml").write_text(text)
        (project / "work" / "clusters" / "site.yaml").write_text(f"partition: {len(text)}\n")
        (project / "work" / "model.yaml").write_text("layers: 2\n")
        folder = submit(project / "runs", text)
    assert len({run["code"]["snapshot"] for run in described(folder)}) == 1
    (copy,) = folder.code_store.iterdir()
    assert sorted(path.name for path in (copy / "work").iterdir()) == [
        "clusters", "data", "mine.py", "model.yaml", "s.yaml", "train.py"
    ]  # fmt: skip
    assert (copy / "work" / "s.yaml").is_symlink()
    assert not (copy / "work" / "model.yaml").is_symlink()


def test_the_copy_is_no_part_of_the_id(slurm: Slurm, project: Path) -> None:
    first = [run.run_id for run in submission(project / "runs", COMMAND)[0].runs]
    folder = submit(project / "runs")
    (project / "work" / "train.py").write_text("new")
    slurm.states["1_0"] = State.FAILED
    submit(project / "runs")
    assert [run["run_id"] for run in described(folder)] == first
    assert started(folder) == ["new", "old"], "a failed run is sent with the present code"


def test_a_retry_starts_what_was_submitted(slurm: Slurm, project: Path) -> None:
    folder = submit(project / "runs")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "later")
    (project / "work" / "train.py").write_text("new")
    slurm.states.update({"1_0": State.FAILED, "2_0": State.FAILED})
    (folder.logs / "1_0_0_log.out").touch()
    (slurm.run_dirs["2_0"] / "attempts.jsonl").touch()
    first = described(folder)
    resend(folder, [], from_start=False)
    assert started(folder) == ["old", "old"]
    assert [(run["code"], run["git"]) for run in described(folder)] == [(run["code"], run["git"]) for run in first]
    slurm.states["3_0"] = State.COMPLETED
    resend(folder, ["1x1"], from_start=True)
    assert started(folder) == ["new", "old"]
    assert [run["git"] is None for run in described(folder)] == [False, True]


def test_a_retry_of_a_run_that_never_started_takes_the_present_code(slurm: Slurm, project: Path) -> None:
    """Its smoke run has failed, and the user has repaired the code."""
    folder = submit(project / "runs")
    (project / "work" / "train.py").write_text("repaired")
    slurm.states.update({"1_0": State.CANCELLED, "2_0": State.FAILED})
    (slurm.run_dirs["2_0"] / "failure-rank0.json").touch()
    resend(folder, [], from_start=False)
    assert started(folder) == ["repaired", "old"]


def test_a_retry_works_after_the_root_was_moved(slurm: Slurm, project: Path) -> None:
    submit(project / "runs")
    (project / "runs").rename(project.parent / "moved")
    folder = SweepFolder(project.parent / "moved" / "s" / "site")
    slurm.states.update({"1_0": State.FAILED, "2_0": State.FAILED})
    slurm.run_dirs = {job: folder.run(path.name) for job, path in slurm.run_dirs.items()}
    for run_dir in slurm.run_dirs.values():
        (run_dir / "attempts.jsonl").touch()
    resend(folder, [], from_start=False)
    assert started(folder) == ["old", "old"]
    assert described(folder)[0]["script"]["working_dir"].startswith(str(folder.code_store))


def test_a_retry_without_the_copy_is_refused(slurm: Slurm, project: Path) -> None:
    folder = submit(project / "runs")
    slurm.states["1_0"] = State.FAILED
    (slurm.run_dirs["1_0"] / "attempts.jsonl").touch()
    before = described(folder)
    path = folder.run(before[0]["run_id"]) / "run.json"
    path.write_text("{")
    with pytest.raises(
        UserError, match=r"run.json is damaged: .* \(its code is not known; sweep submit FILE writes it"
    ):
        resend(folder, ["1x1"], from_start=False)
    path.write_text(json.dumps(before[0]))
    shutil.rmtree(folder.code_store)
    with pytest.raises(UserError, match=r"the code of 1x1-\w+ is missing: .* \(sweep submit FILE, or sweep rerun RUN,"):
        resend(folder, ["1x1"], from_start=False)
    assert described(folder) == before
    assert len(slurm.submitted) == 2


@pytest.mark.parametrize(
    ("text", "profile", "copied"),
    [
        (COMMAND, {}, [True, True]),
        (COMMAND, {"code": "snapshot"}, [True, True]),
        (COMMAND, {"code": "live"}, [False, False]),
        (f"{COMMAND}slurm: {{code: live}}\n", {}, [False, False]),
        (f"{COMMAND}slurm: {{2x1: {{code: live}}}}\n", {}, [True, False]),
        (FAMILY, {}, [False]),
        (FAMILY, {"code": "snapshot"}, [True]),
        ("name: s\nallocations: [1x1]\nbase: {model: bert}\n", {"code": "snapshot"}, [False]),
    ],
)
def test_the_profile_decides(
    slurm: Slurm, project: Path, text: str, profile: dict[str, str], copied: Sequence[bool]
) -> None:
    folder = submit(project / "runs", text, **profile)
    assert [run["code"]["snapshot"] is not None for run in described(folder)] == copied
    assert folder.code_store.is_dir() == any(copied)


def test_an_own_model_is_imported_from_the_copy(slurm: Slurm, project: Path) -> None:
    (run,) = described(submit(project / "runs", FAMILY, code="snapshot"))
    (project / "work" / "mine.py").write_text("edited")
    assert [Path(folder, "mine.py").read_text() for folder in run["import_path"]] == [FAMILY_TEXT] * 2
    assert run["train"]["dataset"] == str(project / "work" / "data"), "data are no code"


def test_live_code_after_a_copy(slurm: Slurm, project: Path) -> None:
    folder = submit(project / "runs")
    slurm.states.update({"1_0": State.FAILED, "2_0": State.FAILED})
    submit(project / "runs", code="live")
    assert {run["script"]["working_dir"] for run in described(folder)} == {str(project / "work")}


def test_without_a_checkout_code_is_live(slurm: Slurm, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(project / ".git")
    folder = submit(project / "runs")
    assert [run["code"] for run in described(folder)] == [{"snapshot": None}] * 2
    assert capsys.readouterr().err == (
        f"note: {project / 'work'} is not in a git checkout, so the code is not copied:"
        " each run uses the files as they are when it starts\n"
    )


def test_code_that_git_ignores_is_live(slurm: Slurm, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The copy has a link to it."""
    (project / ".gitignore").write_text("work\n")
    folder = submit(project / "runs")
    assert [run["code"] for run in described(folder)] == [{"snapshot": None}] * 2
    assert f"note: git ignores {project / 'work'}, or it has no files, so the code is not" in capsys.readouterr().err


def test_what_git_refuses_is_a_note(
    slurm: Slurm, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert [run["code"] for run in described(submit(project / "runs"))] == [{"snapshot": None}] * 2
    assert "git config --global --add safe.directory" in capsys.readouterr().err


def test_copies_of_another_user_are_not_used(slurm: Slurm, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = project / "runs" / ".code"
    theirs.mkdir(parents=True)
    monkeypatch.setattr(sweep_folder, "_user_id", lambda path: 1 if path == theirs else 2)
    folder = submit(project / "runs")
    assert folder.code_store == folder.path / ".code"
    (copy,) = folder.code_store.iterdir()
    assert copy.name.startswith(described(folder)[0]["code"]["snapshot"])
    assert not (copy / "runs").exists()
    assert not list(theirs.iterdir())
    assert list(leftovers(folder, folder.planned_runs(), read_ledger(folder.path), time.time() + 9999)) == []


def test_smoke_runs_start_the_copies_of_their_sweep(slurm: Slurm, project: Path) -> None:
    plan, sweep = submission(project / "runs", COMMAND)
    launch(plan, sweep, max_ranks=None, gate=SmokeGate(sweep))
    folder = SweepFolder(plan.folder)
    assert folder.smoke.code_store == folder.code_store == project / "runs" / ".code"
    assert SweepFolder(project / "runs" / "s" / "smoke").code_store == folder.code_store, "a cluster of this name"
    later = time.time() + 9999
    assert list(leftovers(folder.smoke, folder.smoke.planned_runs(), read_ledger(folder.smoke.path), later)) == []


def test_an_absolute_path_is_a_note(slurm: Slurm, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".gitignore").write_text("env\n")
    (project / "env").mkdir()
    (project / "env" / "tool").touch()
    script = project / "work" / "train.py"
    submit(project / "runs", f"name: s\nallocations: [1x1]\ncommand: {project}/env/tool {script} train.py /etc/hosts\n")
    assert capsys.readouterr().err == (
        f"note: the command has the absolute path {script}, so runs use this file and not its copy\n"
    )


def test_local_runs_start_in_a_copy(project: Path) -> None:
    sweep = parse_sweep(parse_yaml(f"{COMMAND}slurm: {{code: live}}\n", "s.yaml"), str(project))
    for changed, number in ((Cluster("local", "local"), 2), (with_changes(Cluster("local", "local"), sweep), 0)):
        plan = make_plan("s", expand(sweep), changed, project / "runs" / "s" / "local")
        SweepFolder(plan.folder).create()
        assert len(copy_code(SweepFolder(plan.folder), [plan], ())) == number


def test_too_large_code_sends_nothing(slurm: Slurm, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_snapshot, "_MOST_FILES", 1)
    with pytest.raises(UserError, match="the code is too large to copy it for the runs: 2 files, 2 of them in work/"):
        submit(project / "runs")
    assert slurm.submitted == []
    assert not (project / "runs" / "s" / "site" / "runs").exists()


def test_the_root_may_be_the_working_directory(slurm: Slurm, project: Path) -> None:
    """Then results of sweeps are next to the code."""
    root = project / "work"
    first = submit(root)
    (first.path / "more").write_text("result")
    slurm.states.update({"1_0": State.FAILED, "2_0": State.FAILED})
    assert described(submit(root))[0]["code"] == described(first)[0]["code"]
    (copy,) = first.code_store.iterdir()
    assert sorted(path.name for path in (copy / "work").iterdir()) == ["data", "mine.py", "train.py"]


def test_results_in_other_roots_are_no_code(slurm: Slurm, project: Path) -> None:
    """Also plain scripts, whose folder is that of one sweep."""
    first = submit(project / "runs")
    for other in (project / "runs2", project / "work" / "out"):
        (other / ".code" / "1").mkdir(parents=True)
        (other / ".code" / "1" / "train.py").touch()
        (other / ".last").write_text("s/site")
    for sweep in (project / "runs2" / "s" / "site", project / "work" / "out"):
        sweep.mkdir(parents=True, exist_ok=True)
        for name in ("plan.json", "ledger.jsonl", "results.csv"):
            (sweep / name).touch()
    slurm.states.update({"1_0": State.FAILED, "2_0": State.FAILED})
    (project / "work" / "out" / ".last").unlink()
    assert described(submit(project / "runs"))[0]["code"] == described(first)[0]["code"]


def test_the_debugger_starts_the_files_in_place(slurm: Slurm, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.parent / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(project.parent / "scratch"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = submit(project / "runs")
    plans: list[Plan] = []
    for module in ("launch", "debug_run"):
        monkeypatch.setattr(f"jobs.submission.{module}.run_in_debugger", lambda plan, _: plans.append(plan))
    debug_run(folder, folder.planned_runs()[0]["run_id"], "the run")
    debug(*submission(project / "runs", COMMAND))
    assert len(plans) == 2
    for plan in plans:
        run = json.loads((SweepFolder(plan.folder).run(plan.runs[0].run_id) / "run.json").read_text())
        assert (run["script"]["working_dir"], run["code"]) == (str(project / "work"), {"snapshot": None})
