"""The folder of a sweep: what a submission lays down, how it is found again, and who may write there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from disttrain.errors import UserError
from disttrain.records.atomic_write import write_text
from disttrain.records.versions import versions
from jobs.storage.sweep_folder import SweepFolder, find_folder, prepare


def run(run_id: str, world_size: int = 2) -> dict[str, Any]:
    return {"run_id": run_id, "world_size": world_size, "train": {"model": "bert"}}


def lay_down(root: Path, sweep: str = "s", cluster: str = "site", runs: tuple[str, ...] = ("a",)) -> SweepFolder:
    folder = SweepFolder(root / sweep / cluster)
    planned = [run(name) for name in runs]
    prepare(folder, "name: s\n", {"sweep": sweep, "cluster": cluster, "runs": planned}, planned)
    return folder


def files(folder: SweepFolder) -> list[str]:
    return sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())


def test_what_is_laid_down(tmp_path: Path) -> None:
    folder = lay_down(tmp_path)
    assert (folder.sweep_name, folder.cluster_name) == ("s", "site")
    assert files(folder) == ["plan.json", "runs/a/run.json", "sweep.yaml"]
    assert folder.logs.is_dir()
    assert folder.sweep_file.read_text() == "name: s\n"
    laid = json.loads((folder.run("a") / "run.json").read_text())
    assert {name: laid[name] for name in run("a")} == run("a")
    assert laid["versions"] == versions()
    assert {"python", "submitit"} <= set(laid["versions"])
    assert laid["git"] is None or set(laid["git"]) == {"commit", "dirty"}


def test_laid_down_again_a_run_forgets_its_earlier_attempt_and_others_keep_theirs(tmp_path: Path) -> None:
    folder = lay_down(tmp_path, runs=("a", "b"))
    names = ["failure-rank00001.json", "metrics-rank00000.jsonl", "metrics-rank00001.jsonl", "summary.json"]
    for name in ("a", "b"):
        for file in names:
            (folder.run(name) / file).touch()
    planned = [run("a"), run("c")]
    prepare(folder, "name: s\n# again\n", {"sweep": "s", "cluster": "site", "runs": planned}, planned, sent={"a", "b"})
    assert files(folder) == [
        "plan.json",
        "runs/a/run.json",
        *[f"runs/b/{name}" for name in sorted([*names, "run.json"])],
        "runs/c/run.json",
        "sweep.yaml",
    ]
    # What was ever sent stays in the plan, behind what is now.
    assert [planned["run_id"] for planned in folder.planned_runs()] == ["a", "c", "b"]


def test_what_was_planned_and_never_sent_is_forgotten_with_the_plan(tmp_path: Path) -> None:
    folder = lay_down(tmp_path, runs=("a", "b"))
    planned = [run("c")]
    prepare(folder, "name: s\n", {"sweep": "s", "cluster": "site", "runs": planned}, planned, sent={"a"})
    assert [planned["run_id"] for planned in folder.planned_runs()] == ["c", "a"]


def test_a_folder_is_found_by_every_name_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "runs"
    first, second = lay_down(root, cluster="local"), lay_down(root, cluster="site")
    other = lay_down(root, sweep="other")
    os.utime(first.plan_file, (1, 1))
    yaml = tmp_path / "file.yaml"
    yaml.write_text("name: s\nallocations: [1x1]\nbase: {model: bert}\n")
    monkeypatch.chdir(tmp_path)
    assert find_folder(root, None, None) == other
    for name in ("s", str(yaml), "file.yaml", "runs/s", str(root / "s"), "runs/s/site"):
        assert find_folder(root, name, None) == second, name
    for name in ("s", "file.yaml", "runs/s", "runs/s/local"):
        assert find_folder(root, name, "local") == first, name


def test_a_folder_of_the_sweeps_name_without_a_sweep_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_down(tmp_path / "runs")
    (tmp_path / "s").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_folder(tmp_path / "runs", "s", None) == folder


@pytest.mark.parametrize(
    ("sweep", "cluster", "error"),
    [
        (
            "nope",
            None,
            "sweep 'nope' was not submitted: '<root>/nope' holds no plan.json"
            " (submit it with sweep submit, or give the --root and --cluster that it was submitted with)",
        ),
        (
            "s",
            "local",
            "sweep 's' was not submitted on 'local': '<root>/s' holds no plan.json"
            " (submit it with sweep submit, or give the --root and --cluster that it was submitted with)",
        ),
        (
            None,
            "local",
            "sweep 's' was not submitted on 'local': '<root>/s' holds no plan.json"
            " (submit it with sweep submit, or give the --root and --cluster that it was submitted with)",
        ),
        ("<root>/s/site", "local", "--cluster: '<root>/s/site' was submitted to 'site', not to 'local'"),
        ("nope.yaml", None, "nope.yaml: no such file (check the path)"),
    ],
)
def test_what_is_not_there(sweep: str | None, cluster: str | None, error: str, tmp_path: Path) -> None:
    lay_down(tmp_path)
    with pytest.raises(UserError) as caught:
        find_folder(tmp_path, sweep and sweep.replace("<root>", str(tmp_path)), cluster)
    assert str(caught.value) == error.replace("<root>", str(tmp_path))


def test_nothing_was_submitted(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_folder(tmp_path, None, None)
    assert str(caught.value) == f"no sweep was submitted in '{tmp_path}' (name one, or give --root)"


def test_a_moved_folder_works(tmp_path: Path) -> None:
    folder = lay_down(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = find_folder(tmp_path / "there", "s", None)
    assert moved.path == tmp_path / "there" / "s" / "site"
    assert [planned["run_id"] for planned in moved.planned_runs()] == ["a"]
    assert not folder.path.exists()
    laid = [(moved.path / name).read_text() for name in files(moved)]
    assert not any(str(tmp_path) in text for text in laid)


def test_only_its_owner_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_down(tmp_path)
    assert folder.is_owner()
    folder.path.chmod(0o777)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not folder.is_owner()


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "x", "half of a character \ud800")
    assert (tmp_path / "x").read_text() == "first"
