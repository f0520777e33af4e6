"""Copies of a real git checkout: what is copied, what is linked, and what makes another copy."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from disttrain.errors import UserError
from jobs.storage import code_snapshot
from jobs.storage.code_snapshot import Snapshot, recorded_snapshot, start_in_copy, start_in_place, take_snapshot
from jobs.storage.code_state import GitError, checkout_of
from tests.jobs.script_runs import script_run
from tests.jobs.storage.test_code_state import git

pytestmark = pytest.mark.process


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a tracked script, an untracked module, ignored data, and results of sweeps."""
    root = tmp_path / "project"
    write(
        root,
        {"train.py": "old", "pkg/model.py": "m", ".gitignore": "data/\n*.so\n__pycache__/\n", "run.sh": "#!/bin/sh"},
    )
    (root / "run.sh").chmod(0o755)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    write(
        root,
        {"new.py": "n", "data/x.txt": "x", "pkg/fast.so": "so", "pkg/__pycache__/model.pyc": "c", "runs/s/log": "l"},
    )
    return root


def write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def take(root: Path, excluded: Collection[Path] | None = None) -> Snapshot:
    return take_snapshot(root, root.parent / ".code", [root / "runs"] if excluded is None else excluded)


def files_of(snapshot: Snapshot) -> set[str]:
    """The files of a copy, without its links."""
    paths = (Path(folder, name) for folder, _, names in os.walk(snapshot.folder) for name in names)
    return {str(path.relative_to(snapshot.folder)) for path in paths if not path.is_symlink()}


def links_of(snapshot: Snapshot) -> dict[str, str]:
    found = (path for path in snapshot.folder.rglob("*") if path.is_symlink())
    return {str(path.relative_to(snapshot.folder)): os.readlink(path) for path in found}


def test_a_copy_has_tracked_and_untracked_files(checkout: Path) -> None:
    snapshot = take(checkout)
    assert files_of(snapshot) == {".gitignore", "train.py", "pkg/model.py", "new.py", "run.sh"}
    assert links_of(snapshot) == {"data": f"{checkout}/data", "pkg/fast.so": f"{checkout}/pkg/fast.so"}
    assert os.access(snapshot.folder / "run.sh", os.X_OK)
    assert not os.access(snapshot.folder / "train.py", os.X_OK)
    assert snapshot.store.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in snapshot.store.iterdir()] == [snapshot.folder.name]


def test_the_same_files_are_copied_once(checkout: Path) -> None:
    first = take(checkout)
    made = (first.folder / "train.py").stat()
    write(first.folder, {"out.txt": "what a script has written"})
    write(checkout, {"data/y.txt": "y", "runs/s/log": "longer", "more.so": "so"})
    second = take(checkout)
    assert second == first
    assert (second.folder / "train.py").stat() == made
    assert links_of(second)["more.so"] == f"{checkout}/more.so"


def test_an_altered_copy_is_not_used(checkout: Path) -> None:
    first = take(checkout)
    (first.folder / "train.py").write_text("altered")
    second = take(checkout)
    assert (second.code, second.folder.name) == (first.code, f"{first.folder.name}-2")
    (second.folder / "new.py").unlink()
    third = take(checkout)
    assert third.folder.name == f"{first.folder.name}-3"
    assert (third.folder / "train.py").read_text() == "old"
    assert take(checkout) == third
    assert recorded_snapshot(start_in_copy({}, (), third), third.store) == third


@pytest.mark.parametrize("change", ["content", "name", "mode", "link"])
def test_a_change_makes_another_copy(checkout: Path, change: str) -> None:
    first = take(checkout)
    if change == "content":
        write(checkout, {"train.py": "new"})
    elif change == "name":
        (checkout / "new.py").rename(checkout / "newer.py")
    elif change == "mode":
        (checkout / "train.py").chmod(0o755)
    else:
        (checkout / "new.py").unlink()
        (checkout / "new.py").symlink_to("train.py")
    second = take(checkout)
    assert second.code != first.code
    assert (first.folder / "train.py").read_text() == "old"


def test_a_deleted_file_is_left_out(checkout: Path) -> None:
    (checkout / "train.py").unlink()
    assert "train.py" not in files_of(take(checkout))


def test_links_are_copied_as_links(checkout: Path) -> None:
    write(checkout.parent, {"shared/big.bin": "b"})
    for name, target in {"inside": "pkg/model.py", "outside": "../shared", "gone": "nothing"}.items():
        (checkout / name).symlink_to(target)
    links = links_of(take(checkout))
    assert (links["inside"], links["gone"]) == ("pkg/model.py", "nothing")
    assert links["outside"] == f"{checkout.parent}/shared", "the copy is in another folder"


def test_files_of_a_submodule_are_copied(checkout: Path) -> None:
    other = checkout.parent / "other"
    write(other, {"lib.py": "l"})
    git(other, "init", "--quiet")
    git(other, "add", ".")
    git(other, "commit", "--quiet", "--message", "first")
    git(checkout, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "third")
    write(checkout, {"third/more.py": "m"})
    assert {"third/lib.py", "third/more.py", ".gitmodules"} <= files_of(take(checkout))


def test_odd_names_are_copied(checkout: Path) -> None:
    names = {" blank ", "größe", "line\nbreak", "[a]*"}
    write(checkout, dict.fromkeys(names, "x"))
    (checkout / os.fsdecode(b"\xff")).write_text("x")
    assert {*names, os.fsdecode(b"\xff")} <= files_of(take(checkout))


def test_results_of_an_odd_name_are_left_out(checkout: Path) -> None:
    write(checkout, {"my [r]uns/x": "x", "my runs/y": "y"})
    git(checkout, "add", "--force", "runs")  # results that git tracks are no code either
    snapshot = take(checkout, [checkout / "runs", checkout / "my [r]uns"])
    assert not (snapshot.folder / "runs").exists()
    assert "my runs/y" in files_of(snapshot)
    assert not (snapshot.folder / "my [r]uns").exists()


def test_two_checkouts_of_the_same_files_have_a_copy_each(checkout: Path) -> None:
    """Their data are not the same."""
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "all")
    other = checkout.parent / "clone"
    git(checkout, "clone", "--quiet", str(checkout), str(other))
    write(other, {"data/x.txt": "other"})
    first, second = take(checkout), take(other, [])
    assert (first.folder / "data" / "x.txt").read_text() == "x"
    assert (second.folder / "data" / "x.txt").read_text() == "other"


def test_concurrent_submissions_make_one_copy(checkout: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        snapshots = set(pool.map(lambda _: take(checkout).folder, range(16)))
    assert len(snapshots) == 1
    assert list((checkout.parent / ".code").iterdir()) == list(snapshots)


def test_a_file_that_is_edited_in_between(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is that of what was copied."""
    copy = code_snapshot._copy

    def edit_first(root: Path, names: list[str], snapshot: Snapshot) -> Snapshot:
        write(checkout, {"train.py": "edited"})
        return copy(root, names, snapshot)

    monkeypatch.setattr(code_snapshot, "_copy", edit_first)
    edited = take(checkout)
    assert (edited.folder / "train.py").read_text() == "edited"
    assert take(checkout) == edited


def test_a_failed_copy_leaves_nothing(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(code_snapshot, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        take(checkout)
    assert list((checkout.parent / ".code").iterdir()) == []


def test_too_large_code_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(checkout, {f"images/cats/{index}.png": "x" * 2**20 for index in range(3)})
    monkeypatch.setattr(code_snapshot, "_MOST_BYTES", 2**21)
    with pytest.raises(UserError) as caught:
        take(checkout)
    assert str(caught.value) == (
        f"{checkout}: the code is too large to copy it for the runs: 3 MiB, 3 MiB of them in images/cats/; the limit is"
        " 2 MiB (list what is no code in .gitignore, or set code: live under slurm, so that nothing is copied)"
    )
    monkeypatch.setattr(code_snapshot, "_MOST_BYTES", 2**23)
    monkeypatch.setattr(code_snapshot, "_MOST_FILES", 5)
    with pytest.raises(UserError, match="8 files, 3 of them in images/cats/; the limit is 5 files"):
        take(checkout)
    assert not (checkout.parent / ".code").exists()


def test_a_run_starts_in_the_copy(checkout: Path) -> None:
    snapshot = take(checkout)
    run = script_run()
    run["script"]["working_dir"] = str(checkout / "pkg")
    described = {**run, **start_in_copy(run, ["/elsewhere", str(checkout)], snapshot)}
    assert described["script"]["working_dir"] == str(snapshot.folder / "pkg")
    assert described["import_path"] == ["/elsewhere", str(snapshot.folder)]
    assert described["code"] == {"snapshot": snapshot.code, "root": str(checkout), "folder": str(snapshot.folder)}
    assert recorded_snapshot(described, snapshot.store) == snapshot
    assert run["script"]["working_dir"] == str(checkout / "pkg"), "plan.json keeps the original"
    back = start_in_place(described)
    assert (back["script"], back["import_path"]) == (run["script"], ["/elsewhere", str(checkout)])


@pytest.mark.parametrize("code", [None, {}, {"snapshot": None}, {"snapshot": 3, "root": "/"}, "x"])
def test_a_run_without_a_copy(code: object, tmp_path: Path) -> None:
    assert recorded_snapshot({"code": code}, tmp_path) is None


def test_the_checkout_of_a_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkout_of(checkout / "pkg") == checkout
    assert checkout_of(checkout.parent) is None
    subprocess.run(["git", "init", "--quiet", "--bare", checkout.parent / "bare"], check=True)
    assert checkout_of(checkout.parent / "bare") is None
    with pytest.raises(GitError, match="cannot change to"):
        checkout_of(checkout / "none")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(GitError, match=r"dubious ownership.* safe\.directory"):
        checkout_of(checkout)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GitError, match="git cannot be started: No such file"):
        checkout_of(checkout)
