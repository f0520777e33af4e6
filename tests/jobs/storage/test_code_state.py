"""The commit that a sweep is submitted from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobs.storage.code_state import git_state

pytestmark = pytest.mark.process


def git(folder: Path, *arguments: str) -> str:
    user = ["-c", "user.name=me", "-c", "user.email=me@host"]
    done = subprocess.run(["git", *user, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_uncommitted_changes_are_noted(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "model.py").write_text("lr = 1\n")
    git(tmp_path, "add", "model.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "plan.json").touch()  # git does not follow it
    assert git_state(tmp_path) == git_state(tmp_path / "runs") == {"commit": commit, "dirty": False}
    (tmp_path / "model.py").write_text("lr = 2\n")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}


def test_without_a_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path) is None  # no commit yet
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None
