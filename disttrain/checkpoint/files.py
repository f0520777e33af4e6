"""The checkpoint files of a run: verified before they are trusted, owned by one attempt, cleared away in the end."""

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

KEPT = 2
_NAME = re.compile(r"attempt-(?P<attempt>\d{5})-step-(?P<step>\d{9})\.json")
# A checkpoint's own file, and whatever is still under its temporary name.
_PART = re.compile(r"\.?(?P<name>attempt-(?P<attempt>\d{5})-step-\d{9})\.(pt|(pt|json)\.\d+)")
_CLAIM = re.compile(r"attempt-(\d{5})")


@dataclass(frozen=True)
class Manifest:
    """What vouches for one checkpoint; written after it, so that a checkpoint without one is not whole."""

    attempt: int
    step: int
    file: str
    size_bytes: int
    sha256: str
    identity: str  # of the run
    world_size: int


class Claim:
    """The right of one attempt to write into a run's checkpoint folder, until a newer attempt claims it.

    A requeued job's ranks can live on beyond a cut cable while the next attempt runs. Each attempt takes the next free
    number; its files carry it, and it stops when it finds a higher one.
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
                # Created or refused by the file system in one step, over NFS too.
                os.close(os.open(folder / f"attempt-{self.attempt:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                return

    def check(self) -> None:
        """Makes sure that this attempt is the latest.

        Raises:
            NewerAttempt: It is not.
        """
        check_owner(self._folder, self.attempt)


def is_overtaken(folder: Path, attempt: int) -> bool:
    """Whether a newer attempt owns the run."""
    return _last_claim(folder) > attempt


def check_owner(folder: Path, attempt: int) -> None:
    """Makes sure that no newer attempt owns the run.

    Raises:
        NewerAttempt: One does.
    """
    if is_overtaken(folder, attempt):
        raise NewerAttempt(f"a newer attempt of this run has started; attempt {attempt} stops here")


def _last_claim(folder: Path) -> int:
    return max((int(match[1]) for match in map(_CLAIM.fullmatch, os.listdir(folder)) if match), default=0)


def list_manifests(folder: Path) -> list[Path]:
    """The manifests in a folder, the one to go on from first: that of the latest attempt, and of its latest step."""
    return sorted((path for path in folder.glob("attempt-*.json") if _NAME.fullmatch(path.name)), reverse=True)


def remove(folder: Path, manifest: Path) -> None:
    """Removes a checkpoint; the manifest first, so that nothing vouches for what is half gone."""
    manifest.unlink(missing_ok=True)
    (folder / manifest.name).with_suffix(".pt").unlink(missing_ok=True)


@dataclass(frozen=True)
class FoundCheckpoint:
    """The checkpoint to go on from, and what was wrong with those that were passed over."""

    manifest: Manifest | None
    notices: tuple[str, ...]
    damaged: tuple[Path, ...] = ()  # manifests of those that no later look will find whole
    unreadable: bool = False  # there are some that may be whole, but none that can be read now


def find(folder: Path) -> FoundCheckpoint:
    """The latest whole checkpoint of a folder.

    Each is read and compared with its checksum; one that does not match is passed over for the one before.
    """
    notices: list[str] = []
    damaged: list[Path] = []
    unreadable = False
    for path in list_manifests(folder):
        try:
            manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
            problem = _damage(folder / manifest.file, manifest)
        except OSError as error:
            # A file system that cannot be read now may be read again.
            notices.append(f"checkpoint {path.stem} is passed over: {error.strerror or error}")
            unreadable = True
            continue
        except (ValueError, TypeError) as error:
            problem = f"its manifest cannot be read: {error}"
        if problem is None:
            return FoundCheckpoint(manifest, tuple(notices), tuple(damaged))
        damaged.append(path)
        notices.append(f"checkpoint {path.stem} is passed over: {problem}")
    return FoundCheckpoint(None, tuple(notices), tuple(damaged), unreadable)


def _damage(path: Path, manifest: Manifest) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "it is not there"
    if size != manifest.size_bytes:
        return f"it has {size} of {manifest.size_bytes} bytes"
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.sha256:
            return "its checksum does not match"
    return None


def load(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The state of a checkpoint, in memory: whoever takes it copies it to where it belongs."""
    state: dict[str, Any] = torch.load(folder / manifest.file, map_location="cpu", weights_only=True)
    return state


def remove_leftovers(folder: Path, attempt: int, damaged: tuple[Path, ...] = ()) -> None:
    """Removes what is of no use to anyone: damaged checkpoints, and what attempts before this one left half written."""
    for manifest in damaged:
        remove(folder, manifest)
    whole = {path.stem for path in list_manifests(folder)}
    for path in folder.iterdir():
        match = _PART.fullmatch(path.name)
        useless = match and (match["name"] not in whole or path.name.startswith("."))
        if match and useless and int(match["attempt"]) < attempt:
            path.unlink(missing_ok=True)


def clear(folder: Path, attempt: int) -> None:
    """Removes the checkpoints of a run that has ended well, except those of an attempt after this one.

    The claims stay, since an older attempt may still live.
    """
    for manifest in list_manifests(folder):
        match = _NAME.fullmatch(manifest.name)
        if match and int(match["attempt"]) <= attempt:
            remove(folder, manifest)
    remove_leftovers(folder, attempt + 1)
