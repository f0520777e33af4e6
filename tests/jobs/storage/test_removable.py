"""What can be removed from the folder of a sweep, and what never is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from jobs.storage import ledger
from jobs.storage.code_snapshot import Snapshot, start_in_copy, take_snapshot
from jobs.storage.forget_runs import remove_copy
from jobs.storage.ledger import read_ledger
from jobs.storage.removable import Kind, Removable, leftovers, of_runs
from jobs.storage.sweep_folder import SweepFolder
from tests.jobs.storage.test_code_state import git

UUID = "0123456789abcdef" * 2


def write(folder: SweepFolder, *names: str, size: int = 10) -> None:
    for name in names:
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def found(folder: SweepFolder, items: list[Removable]) -> dict[str, list[str]]:
    """The removable paths by kind."""
    paths: dict[str, list[str]] = {}
    for item in items:
        paths.setdefault(item.kind.value, []).extend(str(path.relative_to(folder.path)) for path in item.paths)
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """The folder of a sweep with three runs, of which each has a checkpoint, a model and an earlier result."""
    folder = SweepFolder(tmp_path / "s" / "site")
    for run_id in ("1x1-a", "1x1-b", "1x1-c"):
        run = f"runs/{run_id}"
        checkpoint = f"{run}/checkpoints/attempt-00001"
        write(folder, checkpoint, f"{checkpoint}-step-000000005.pt", f"{checkpoint}-step-000000005.json")
        write(folder, f"{run}/summary.json", f"{run}/metrics-rank00000.jsonl", f"{run}/run.json")
        write(folder, f"{run}/model/weights", f"{run}/.model.77/weights", f"{run}/earlier/1/model/weights")
        write(folder, f"{run}/earlier/1/checkpoints/attempt-00001-step-000000002.pt", f"{run}/earlier/1/summary.json")
    ledger.record(folder.path, {"1x1-a": "7_0", "1x1-b": "7_1", "1x1-c": "9"}, 1.0)
    return folder


def test_what_runs_no_longer_need(folder: SweepFolder) -> None:
    """a is done, b failed and resumes from its checkpoint, c runs. Claims stay, for an attempt on a lost node."""
    items = list(of_runs(folder, {"1x1-a": "a", "1x1-b": "b"}, {"1x1-a"}))
    checkpoint = "runs/1x1-a/checkpoints/attempt-00001-step-000000005"
    earlier = "earlier/1/checkpoints/attempt-00001-step-000000002.pt"
    assert found(folder, items) == {
        "checkpoints": [f"{checkpoint}.json", f"runs/1x1-a/{earlier}", f"{checkpoint}.pt", f"runs/1x1-b/{earlier}"],
        "models": ["runs/1x1-a/earlier/1/model", "runs/1x1-a/model", "runs/1x1-b/earlier/1/model"],
        "leftovers": ["runs/1x1-a/.model.77", "runs/1x1-b/.model.77"],
    }
    assert {(item.name, item.kind): item.size_bytes for item in items if item.name == "a"} == {
        ("a", Kind.CHECKPOINTS): 30, ("a", Kind.MODELS): 20, ("a", Kind.LEFTOVERS): 10
    }  # fmt: skip


def test_files_of_a_script_stay(folder: SweepFolder) -> None:
    """Also under the names of our files, and those that a rerun has moved."""
    write(folder, "runs/1x1-a/.summary.json.12", "runs/1x1-a/.cache.12")
    items = list(of_runs(folder, {"1x1-a": "a"}, {"1x1-a"}, {"1x1-a"}))
    assert found(folder, items) == {"leftovers": ["runs/1x1-a/.summary.json.12"]}


def test_links_to_another_disk_stay(folder: SweepFolder, tmp_path: Path) -> None:
    run_dir = folder.run("1x1-d")
    run_dir.mkdir()
    write(SweepFolder(tmp_path), "disk/attempt-00001-step-000000005.pt")
    for name in ("checkpoints", "model"):
        (run_dir / name).symlink_to(tmp_path / "disk")
    assert list(of_runs(folder, {"1x1-d": "d"}, {"1x1-d"})) == []


def old_leftovers(folder: SweepFolder) -> list[str]:
    planned = [{"run_id": "1x1-a"}, {"run_id": "1x1-planned"}]
    items = list(leftovers(folder, planned, read_ledger(folder.path), time.time() + 3700))
    return found(folder, items).get("leftovers", [])


def test_leftovers(folder: SweepFolder) -> None:
    unused = ["runs/1x1-x/run.json", "runs/1x1-y/.run.json.12"]
    logs = ["logs/8_0_0_log.out", "logs/8_submission.sh", "logs/8_1_submitted.pkl", "logs/6_0_result.pkl"]
    local = ["logs/local-1-abc-0/9_0_log.out"]
    unsent = [f"logs/{UUID}.pkl", f"logs/.submission_file_{UUID}.sh"]
    temporary = [".plan.json.123", ".space.4"]
    write(folder, *unused, *logs, *local, *unsent, *temporary)
    dangling = f"logs/.submission_file_{UUID[::-1]}.sh"
    (folder.path / dangling).symlink_to(folder.logs / "5_submission.sh")
    expected = {"runs/1x1-x", "runs/1x1-y", "logs/local-1-abc-0", dangling, *logs, *unsent, *temporary}
    assert set(old_leftovers(folder)) == expected
    # A command that runs now may have written them.
    assert list(leftovers(folder, [], read_ledger(folder.path), time.time())) == []


def test_what_is_no_leftover(folder: SweepFolder) -> None:
    """Known runs and jobs, results of runs that plan.json lacks, the sweep's own files, and files of the user."""
    write(folder, "runs/1x1-planned/run.json", "runs/1x1-lost/summary.json", "runs/1x1-lost/run.json")
    ledger.record(folder.path, {"1x1-sent": "9_1"}, 2.0)  # its job waits
    write(folder, "runs/1x1-sent/run.json")
    write(folder, "runs/1x1-failed/failure-rank00000.json", "runs/mine/notes.txt", "runs/notes.txt")
    write(folder, "logs/7_0_0_log.out", "logs/7_2_0_log.out", "logs/7_submission.sh", "logs/9_0_log.err")
    write(folder, "logs/queue.log", "logs/8_notes.txt", "plan.json", "results.csv", ".submit.claim", "data.json")
    (folder.logs / f".submission_file_{UUID}.sh").symlink_to(folder.logs / "7_submission.sh")
    assert old_leftovers(folder) == []


@pytest.mark.parametrize("event", ["damage", "intend", "token"])
def test_without_a_complete_ledger_there_are_no_leftovers(folder: SweepFolder, event: str) -> None:
    """It may lack jobs that run."""
    write(folder, "logs/8_0_log.out")
    assert old_leftovers(folder) == ["logs/8_0_log.out"]
    if event == "damage":
        with (folder.path / "ledger.jsonl").open("a") as file:
            file.write("{wrong\n")
    else:
        ledger.intend(folder.path, ["1x1-x"] if event == "intend" else [], 2.0, token="t")
    assert old_leftovers(folder) == []


def test_a_folder_that_is_younger_stays(folder: SweepFolder) -> None:
    write(folder, "runs/1x1-x/run.json")
    now_s = time.time()
    os.utime(folder.run("1x1-x"), (now_s, now_s + 200))
    assert old_leftovers(folder) == []


def copy(folder: SweepFolder, text: str) -> Snapshot:
    """A copy of a checkout with this text in its script, and with data that git ignores."""
    root = folder.code_store.parent / "project"
    write(SweepFolder(root), "data/x", "pkg/fast.so", "pkg/model.py")
    (root / "train.py").write_text(text)
    (root / "more").unlink(missing_ok=True)
    (root / "more").symlink_to("/data/more")
    (root / ".gitignore").write_text("data\n*.so\n")
    git(root, "init", "--quiet")
    return take_snapshot(root, folder.code_store, [])


def names_copy(folder: SweepFolder, run_dir: str, snapshot: Snapshot) -> None:
    write(folder, f"{run_dir}/run.json")
    (folder.path / run_dir / "run.json").write_text(json.dumps(start_in_copy({}, (), snapshot)))


@pytest.mark.process
def test_copies_of_code_that_no_run_names(folder: SweepFolder, tmp_path: Path) -> None:
    """A run of another sweep, or an earlier result, needs one too. What a script has written stays."""
    needed, other, earlier, unneeded, written = (copy(folder, text) for text in ("a", "b", "c", "d", "e"))
    for run_dir in folder.path.glob("runs/*"):
        (run_dir / "run.json").write_text("{}")
    names_copy(folder, "runs/1x1-a", needed)
    names_copy(SweepFolder(tmp_path / "t" / "site"), "runs/1x1-z", other)
    names_copy(folder, "runs/1x1-b/earlier/1", earlier)
    write(SweepFolder(written.folder), "pkg/out.txt")
    write(SweepFolder(unneeded.folder), "__pycache__/train.pyc")
    write(SweepFolder(folder.code_store), ".half/train.py")
    items = leftovers(
        folder, [{"run_id": f"1x1-{name}"} for name in "abc"], read_ledger(folder.path), time.time() + 3700
    )
    assert {item.name: item.paths for item in items} == {
        f".code/{path.name}": (path,) for path in (unneeded.folder, folder.code_store / ".half")
    }
    assert list(leftovers(folder, [], read_ledger(folder.path), time.time())) == []


@pytest.mark.process
def test_a_damaged_run_may_need_a_copy(folder: SweepFolder) -> None:
    copy(folder, "a")
    (folder.run("1x1-a") / "run.json").write_text("{")
    assert old_leftovers(folder) == []


@pytest.mark.process
def test_a_copy_that_is_used_in_the_meantime_stays(folder: SweepFolder) -> None:
    unneeded, young, named = (copy(folder, text) for text in ("a", "b", "c"))
    for snapshot in (unneeded, named):
        os.utime(snapshot.folder, (0, 0))
    for run_dir in folder.path.glob("runs/*"):
        (run_dir / "run.json").write_text("{}")
    names_copy(folder, "runs/1x1-a", named)
    for snapshot in (unneeded, young, named):
        remove_copy(folder, snapshot.folder)
    assert set(folder.code_store.iterdir()) == {young.folder, named.folder}


@pytest.mark.process
def test_a_copy_that_is_used_again_is_young(folder: SweepFolder) -> None:
    first = copy(folder, "a")
    os.utime(first.folder, (0, 0))
    copy(folder, "a")
    assert time.time() - first.folder.stat().st_mtime < 60
