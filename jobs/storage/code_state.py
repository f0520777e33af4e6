"""What git says of the user's code: its commit, its checkout and the files in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

_NO_CHECKOUT = ("not a git repository", "must be run in a work tree")  # the latter in a bare repository


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout around `folder`, and whether it has uncommitted changes; None outside a checkout."""
    try:
        commit = run_git(folder, "rev-parse", "HEAD").strip()
        changes = run_git(folder, "status", "--porcelain", "--untracked-files=no").strip()
        return {"commit": commit, "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


class GitError(Exception):
    """Git cannot say whether there is a checkout."""


def checkout_of(folder: Path) -> Path | None:
    """The top folder of the checkout around `folder`; None outside a checkout.

    Raises:
        GitError: Git is missing or does not answer, or it refuses: the folder may belong to another user.
    """
    try:
        text = run_git(folder, "rev-parse", "--show-toplevel").removesuffix("\n")
    except OSError as error:
        raise GitError(f"git cannot be started: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(os.fsdecode(error.stderr).split())
        if any(text in reason for text in _NO_CHECKOUT):
            return None
        raise GitError(reason or f"git has ended with status {error.returncode}") from None
    except subprocess.TimeoutExpired as error:
        raise GitError(f"git has not answered for {error.timeout:g} s") from None
    return Path(text) if text else None  # a bare repository has no files


def run_git(folder: Path, *arguments: str) -> str:
    """The output of a git command in a folder; names that are not UTF-8 have the form of Python's paths.

    Raises:
        OSError: Git cannot be started.
        subprocess.SubprocessError: Git has failed, or takes too long.
    """
    environ = {**os.environ, "LC_ALL": "C"}  # its messages are in English
    command = ["git", "-C", str(folder), *arguments]
    completed = subprocess.run(command, capture_output=True, check=True, timeout=30, env=environ)
    return os.fsdecode(completed.stdout)
