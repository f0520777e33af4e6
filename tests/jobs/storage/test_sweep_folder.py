"""The folder of a sweep: the files of a submission, the search for the folder, and its owner."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from disttrain.records.atomic_write import atomic_write, write_text
from disttrain.records.record_files import CHECKPOINTS_NAME
from disttrain.records.versions import versions
from jobs.storage.sweep_folder import SweepFolder, find_folder, prepare, prepare_runs
from tests.jobs.script_runs import script_run


def run(run_id: str, world_size: int = 2) -> dict[str, Any]:
    return {
        "run_id": run_id, "allocation": "1x1", "world_size": world_size, "point": {}, "train": {"model": "bert"},
    }  # fmt: skip


def submit_runs(root: Path, sweep: str = "s", cluster: str = "site", runs: tuple[str, ...] = ("a",)) -> SweepFolder:
    folder = SweepFolder(root / sweep / cluster)
    planned = [run(name) for name in runs]
    prepare(folder, "name: s\n", {"sweep": sweep, "cluster": cluster, "runs": planned}, runs)
    prepare_runs(folder, planned)
    return folder


def files(folder: SweepFolder) -> list[str]:
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())


@pytest.mark.process
def test_the_files_of_a_submission(tmp_path: Path) -> None:
    folder = submit_runs(tmp_path)
    assert (folder.sweep_name, folder.cluster_name) == ("s", "site")
    assert files(folder) == ["plan.json", "runs/a/run.json", "sweep.yaml"]
    assert folder.logs.is_dir()
    assert folder.sweep_file.read_text() == "name: s\n"
    description = json.loads((folder.run("a") / "run.json").read_text())
    assert {name: description[name] for name in run("a")} == run("a")
    assert description["versions"] == versions()
    assert {"python", "submitit"} <= set(description["versions"])
    assert description["git"] is None or set(description["git"]) == {"commit", "dirty"}


@pytest.mark.process
def test_a_new_attempt_removes_old_records(tmp_path: Path) -> None:
    """The records of runs that are not submitted again stay."""
    folder = submit_runs(tmp_path, runs=("a", "b"))
    names = ["failure-rank00001.json", "metrics-rank00000.jsonl", "metrics-rank00001.jsonl", "summary.json"]
    for name in ("a", "b"):
        for file in names:
            (folder.run(name) / file).touch()
    planned = [run("a"), run("c")]
    prepare(
        folder,
        "name: s\n# again\n",
        {"sweep": "s", "cluster": "site", "runs": planned},
        {"a", "c"},
        submitted_ids={"a", "b"},
    )
    prepare_runs(folder, planned)
    assert files(folder) == [
        "plan.json",
        "runs/a/run.json",
        *[f"runs/b/{name}" for name in sorted([*names, "run.json"])],
        "runs/c/run.json",
        "sweep.yaml",
    ]
    # Runs of earlier submissions stay in the plan, after the new ones.
    assert [planned["run_id"] for planned in folder.planned_runs()] == ["a", "c", "b"]


@pytest.mark.process
def test_a_run_with_a_checkpoint_keeps_its_records(tmp_path: Path) -> None:
    """The new attempt resumes, and its records begin at the step of the checkpoint."""
    folder = submit_runs(tmp_path)
    for name in ("failure-rank00000.json", "metrics-rank00000.jsonl", "metrics-rank00001.jsonl", "summary.json"):
        (folder.run("a") / name).touch()
    checkpoint = folder.run("a") / CHECKPOINTS_NAME / "attempt-00001-step-000000005.json"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    submit_runs(tmp_path)
    kept = [f"{CHECKPOINTS_NAME}/{checkpoint.name}", "metrics-rank00000.jsonl", "metrics-rank00001.jsonl", "run.json"]
    assert files(folder) == ["plan.json", *(f"runs/a/{name}" for name in kept), "sweep.yaml"]


@pytest.mark.process
@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_script_keeps_its_records(has_checkpoint: bool, tmp_path: Path) -> None:
    """They are the telemetry of all its attempts. Files of its own, whatever their names, decide nothing."""
    folder, planned = SweepFolder(tmp_path / "s" / "site"), script_run("1x2-0123456789ab")
    prepare_runs(folder, [planned])
    run_dir = folder.run(planned["run_id"])
    kept = ["metrics-rank00000.jsonl", "script-metrics/rank00000-attempt001.jsonl"]
    kept += [f"{CHECKPOINTS_NAME}/step-5.json"] * has_checkpoint
    for name in (*kept, "failure-rank00001.json", "summary.json"):
        (run_dir / name).parent.mkdir(exist_ok=True)
        (run_dir / name).touch()
    prepare_runs(folder, [planned])
    assert files(folder) == sorted(f"runs/{planned['run_id']}/{name}" for name in (*kept, "run.json"))


@pytest.mark.process
def test_the_plan_has_the_config_of_each_submission(tmp_path: Path) -> None:
    """b is sent again with another number of workers, a is done: it has the number with which it ran."""
    folder = submit_runs(tmp_path, runs=("a", "b"))
    changed = [{**run(name), "train": {"model": "bert", "num_workers": 0}} for name in ("a", "b")]
    prepare(folder, "name: s\n", {"sweep": "s", "cluster": "site", "runs": changed}, {"b"}, {"a", "b"})
    assert folder.planned_runs() == [run("a"), changed[1]]


@pytest.mark.process
def test_a_run_never_submitted_leaves_the_plan(tmp_path: Path) -> None:
    folder = submit_runs(tmp_path, runs=("a", "b"))
    planned = [run("c")]
    prepare(folder, "name: s\n", {"sweep": "s", "cluster": "site", "runs": planned}, {"c"}, submitted_ids={"a"})
    assert [planned["run_id"] for planned in folder.planned_runs()] == ["c", "a"]


@pytest.mark.process
def test_the_plan_marks_dropped_runs(tmp_path: Path) -> None:
    folder = submit_runs(tmp_path, runs=("a", "b", "c"))

    def submit(*names: str, dropped: set[str]) -> dict[str, bool | None]:
        plan = {"sweep": "s", "cluster": "site", "runs": [run(name) for name in names]}
        prepare(folder, "name: s\n", plan, [], submitted_ids={"a", "b", "c"}, dropped_ids=dropped)
        return {planned["run_id"]: planned.get("dropped") for planned in folder.planned_runs()}

    assert submit("a", dropped={"b", "c"}) == {"a": None, "b": True, "c": True}
    assert submit("b", dropped={"a"}) == {"b": None, "a": True, "c": None}


@pytest.mark.process
def test_finds_a_folder_by_each_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    first, second = submit_runs(root, cluster="local"), submit_runs(root, cluster="site")
    other = submit_runs(root, sweep="other")
    os.utime(first.plan_file, (1, 1))
    yaml = tmp_path / "file.yaml"
    yaml.write_text("name: s\nallocations: [1x1]\nbase: {model: bert}\n")
    monkeypatch.chdir(tmp_path)
    assert find_folder(root, None, None) == other
    for name in ("s", str(yaml), "file.yaml", "runs/s", str(root / "s"), "runs/s/site"):
        assert find_folder(root, name, None) == second, name
    for name in ("s", "file.yaml", "runs/s", "runs/s/local"):
        assert find_folder(root, name, "local") == first, name
    os.utime(second.plan_file, (0, 0))  # the latest by time, not by name
    for name in ("s", "file.yaml", "runs/s"):
        assert find_folder(root, name, None) == first, name


@pytest.mark.process
def test_the_last_submission_names_its_cluster(tmp_path: Path) -> None:
    """sweep forget writes the plan of another cluster later."""
    local, site = submit_runs(tmp_path, cluster="local"), submit_runs(tmp_path, cluster="site")
    os.utime(site.plan_file, (1, 1))
    assert find_folder(tmp_path, None, None) == site
    assert find_folder(tmp_path, None, "local") == local


@pytest.mark.process
def test_ignores_a_folder_without_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = submit_runs(tmp_path / "runs")
    (tmp_path / "s").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_folder(tmp_path / "runs", "s", None) == folder


@pytest.mark.process
@pytest.mark.parametrize(
    ("sweep", "cluster", "error"),
    [
        (
            "nope",
            None,
            "sweep 'nope' was not submitted: '<root>/nope' has no plan.json"
            " (submitted sweeps: s; submit it with sweep submit, or give the --root of its submission)",
        ),
        (
            "s-batch",
            None,
            "sweep 's-batch' was not submitted: '<root>/s-batch' has no plan.json"
            " (submitted sweeps: s; submit it with sweep submit, or give the --root of its submission)",
        ),
        ("s", "local", "sweep 's' was not submitted to 'local' (it was submitted to: site; give --cluster site)"),
        (None, "local", "sweep 's' was not submitted to 'local' (it was submitted to: site; give --cluster site)"),
        ("<root>/s/site", "local", "--cluster: '<root>/s/site' was submitted to 'site', not to 'local'"),
        ("nope.yaml", None, "nope.yaml: no such file (check the path)"),
    ],
)
def test_a_missing_sweep_is_an_error(sweep: str | None, cluster: str | None, error: str, tmp_path: Path) -> None:
    submit_runs(tmp_path)
    with pytest.raises(UserError) as caught:
        find_folder(tmp_path, sweep and sweep.replace("<root>", str(tmp_path)), cluster)
    assert str(caught.value) == error.replace("<root>", str(tmp_path))


@pytest.mark.process
def test_an_unknown_name_lists_the_sweeps(tmp_path: Path) -> None:
    for number in range(11):
        submit_runs(tmp_path, sweep=f"bert-{number:02}")
    hint = "submit it with sweep submit, or give the --root of its submission"
    listed = ", ".join(f"bert-{number:02}" for number in range(10))
    with pytest.raises(UserError) as caught:
        find_folder(tmp_path, "bert-3", None)
    assert caught.value.hint == f"did you mean bert-03? submitted sweeps: {listed}, ...; {hint}"
    with pytest.raises(UserError) as caught:
        find_folder(tmp_path / "none", "x", None)
    assert caught.value.hint == hint


def test_an_empty_root_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_folder(tmp_path, None, None)
    assert caught.value.message == f"no sweep was submitted in '{tmp_path}'"
    assert caught.value.hint == "submit one with sweep submit FILE, or give the --root of its submission"


def modes(folder: SweepFolder) -> dict[str, str]:
    paths = [folder.path, *folder.path.rglob("*")]
    return {str(path.relative_to(folder.path)): oct(path.stat().st_mode & 0o777) for path in paths}


@pytest.mark.process
def test_what_may_hold_secrets_is_private(tmp_path: Path) -> None:
    """sweep.yaml has setup lines, logs/ has batch scripts and pickles; what results need is readable."""
    before = os.umask(0o022)
    try:
        folder = submit_runs(tmp_path)
        assert modes(folder) == {
            ".": "0o700", "logs": "0o700", "plan.json": "0o644", "runs": "0o755", "runs/a": "0o755",
            "runs/a/run.json": "0o600", "sweep.yaml": "0o600",
        }  # fmt: skip
        folder.path.chmod(0o755)
        folder.logs.chmod(0o750)
        submit_runs(tmp_path)
        assert (modes(folder)["."], modes(folder)["logs"]) == ("0o755", "0o750"), "the user's choice stays"
    finally:
        os.umask(before)


@pytest.mark.process
def test_a_moved_folder_works(tmp_path: Path) -> None:
    folder = submit_runs(tmp_path / "old")
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = find_folder(tmp_path / "new", "s", None)
    assert moved.path == tmp_path / "new" / "s" / "site"
    assert [planned["run_id"] for planned in moved.planned_runs()] == ["a"]
    assert not folder.path.exists()
    texts = [(moved.path / name).read_text() for name in files(moved)]
    assert not any(str(tmp_path) in text for text in texts)


@pytest.mark.process
def test_only_the_owner_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = submit_runs(tmp_path)
    assert folder.is_owner()
    folder.path.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not folder.is_owner()


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "first")
    with pytest.raises(OSError, match="File name too long"):
        write_text(tmp_path / ("x" * 255), "second")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "x") as file:
        file.write(b"half" + bytes(1 // 0))
    assert (tmp_path / "x").read_text() == "first"
