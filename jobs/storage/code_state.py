"""What git says of the user's code: its commit, its checkout and the files in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout around `folder`, and whether it has uncommitted changes; None outside a checkout."""
    try:
        commit = run_git(folder, "rev-parse", "HEAD").strip()
        changes = run_git(folder, "status", "--porcelain", "--untracked-files=no").strip()
        return {"commit": commit, "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def checkout_of(folder: Path) -> Path | None:
    """The top folder of the checkout around `folder`; None outside a checkout, or without git."""
    try:
        text = run_git(folder, "rev-parse", "--show-toplevel").removesuffix("\n")
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(text) if text else None  # a bare repository has no files


def run_git(folder: Path, *arguments: str) -> str:
    """The output of a git command in a folder; names that are not UTF-8 have the form of Python's paths.

    Raises:
        OSError: Git cannot be started.
        subprocess.SubprocessError: Git has failed, or takes too long.
    """
    completed = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=30)
    return os.fsdecode(completed.stdout)
