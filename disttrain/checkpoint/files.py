"""The checkpoint files of a run: written by one attempt, verified before use, removed at the end of the run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from disttrain.errors import NewerAttempt, UserError

MAX_CHECKPOINTS = 2  # older ones are removed
_NAME = re.compile(r"attempt-(?P<attempt>\d{5})-step-(?P<step>\d{9})\.json")
# The state file of a checkpoint, and temporary files of state and manifest.
_PART = re.compile(r"\.?(?P<name>attempt-(?P<attempt>\d{5})-step-\d{9})\.(pt|(pt|json)\.\d+)")
_CLAIM = re.compile(r"attempt-(\d{5})")


@dataclass(frozen=True)
class Manifest:
    """Describes one checkpoint. It is written after the state file: a checkpoint without a manifest is incomplete."""

    attempt: int
    step: int
    file: str
    size_bytes: int
    sha256: str
    identity: str  # the id of the run
    world_size: int


class Claim:
    """The right of one attempt to write into a run's checkpoint folder, until a newer attempt claims it.

    After a network failure, ranks of a requeued job may still run while the next attempt runs. Each attempt takes the
    next free number, uses it in its file names, and stops when it finds a higher number.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"no checkpoint can be written to {str(folder)!r}: {error.strerror}") from error
        self._folder = folder
        self.attempt = _last_claim(folder)
        while True:
            self.attempt += 1
            with contextlib.suppress(FileExistsError):
                # The file system creates or refuses the file in one atomic step, also over NFS.
                os.close(os.open(folder / f"attempt-{self.attempt:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return

    def check(self) -> None:
        """Checks that this attempt is the latest.

        Raises:
            NewerAttempt: A newer attempt owns the run.
        """
        check_owner(self._folder, self.attempt)


def is_overtaken(folder: Path, attempt: int) -> bool:
    """Whether a newer attempt owns the run."""
    return _last_claim(folder) > attempt


def check_owner(folder: Path, attempt: int) -> None:
    """Checks that no newer attempt owns the run.

    Raises:
        NewerAttempt: A newer attempt owns the run.
    """
    if is_overtaken(folder, attempt):
        raise NewerAttempt(f"a newer attempt of this run has started; attempt {attempt} stops here")


def _last_claim(folder: Path) -> int:
    return max((int(match[1]) for match in map(_CLAIM.fullmatch, os.listdir(folder)) if match), default=0)


def list_manifests(folder: Path) -> list[Path]:
    """The manifests in a folder, in the order to resume from: the latest attempt first, and its latest step first."""
    return sorted((path for path in folder.glob("attempt-*.json") if _NAME.fullmatch(path.name)), reverse=True)


def remove(folder: Path, manifest: Path) -> None:
    """Removes a checkpoint. The manifest is removed first, so that no manifest describes an incomplete checkpoint."""
    manifest.unlink(missing_ok=True)
    (folder / manifest.name).with_suffix(".pt").unlink(missing_ok=True)


@dataclass(frozen=True)
class FoundCheckpoint:
    """The checkpoint to resume from, and the checkpoints that were skipped."""

    manifest: Manifest | None
    notices: tuple[str, ...]  # why each skipped checkpoint was skipped
    damaged: tuple[Path, ...] = ()  # the manifests of checkpoints that are damaged for good
    unreadable: bool = False  # no checkpoint can be read now, but some may be intact


def find(folder: Path) -> FoundCheckpoint:
    """The latest intact checkpoint of a folder.

    Each checkpoint is read and compared with its checksum. If they do not match, the one before it is tried.
    """
    notices: list[str] = []
    damaged: list[Path] = []
    unreadable = False
    for path in list_manifests(folder):
        try:
            manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
            problem = _damage(folder / manifest.file, manifest)
        except OSError as error:
            # The file system may be readable again later.
            notices.append(f"checkpoint {path.stem} is skipped: {error.strerror or error}")
            unreadable = True
            continue
        except (ValueError, TypeError) as error:
            problem = f"its manifest cannot be read: {error}"
        if problem is None:
            return FoundCheckpoint(manifest, tuple(notices), tuple(damaged))
        damaged.append(path)
        notices.append(f"checkpoint {path.stem} is skipped: {problem}")
    return FoundCheckpoint(None, tuple(notices), tuple(damaged), unreadable)


def _damage(path: Path, manifest: Manifest) -> str | None:
    """What is wrong with the state file of a checkpoint; None if it is intact."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "its file does not exist"
    if size != manifest.size_bytes:
        return f"it has {size} of {manifest.size_bytes} bytes"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256:
            return "its checksum does not match"
    return None


def load(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The state of a checkpoint, in CPU memory."""
    state: dict[str, Any] = torch.load(folder / manifest.file, map_location="cpu", weights_only=True)
    return state


def remove_leftovers(folder: Path, attempt: int, damaged: tuple[Path, ...] = ()) -> None:
    """Removes damaged checkpoints, and incomplete files of earlier attempts.

    Args:
        folder: The checkpoint folder.
        attempt: The number of this attempt; files of this and of newer attempts stay.
        damaged: The manifests of damaged checkpoints.
    """
    for manifest in damaged:
        remove(folder, manifest)
    complete = {path.stem for path in list_manifests(folder)}
    for path in folder.iterdir():
        match = _PART.fullmatch(path.name)
        incomplete = match and (match["name"] not in complete or path.name.startswith("."))
        if match and incomplete and int(match["attempt"]) < attempt:
            path.unlink(missing_ok=True)


def clear(folder: Path, attempt: int) -> None:
    """Removes the checkpoints of a successful run, except those of newer attempts.

    The claim files stay, because an older attempt may still run.
    """
    for manifest in list_manifests(folder):
        match = _NAME.fullmatch(manifest.name)
        if match and int(match["attempt"]) <= attempt:
            remove(folder, manifest)
    remove_leftovers(folder, attempt + 1)
