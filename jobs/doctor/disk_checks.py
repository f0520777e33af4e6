"""The checks of the root folder: that it can be written, locked, and holds what the sweep writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.doctor.finding import Finding, fail, ok, warn


@dataclass(frozen=True)
class DiskFacts:
    """What is known of the root folder.

    Attributes:
        root: The folder.
        free_bytes: What the file system has free for this user; None if it does not say.
        free_files: How many more files it can have; None if it does not say.
        write_error: Why a small file could not be written; None if it could.
        lock_error: Why a lock could not be held; None if it could.
        expected_bytes: What the sweep writes; None if it is not known.
        quota_bytes: What is left of the user's quota there; None without one, or if no command says it.
    """

    root: str
    free_bytes: int | None = None
    free_files: int | None = None
    write_error: str | None = None
    lock_error: str | None = None
    expected_bytes: int | None = None
    quota_bytes: int | None = None


_OTHER_ROOT = "choose another folder with --root or $SWEEP_ROOT, or remove files (sweep clean lists what no run needs)"
_FEW_FILES = 10_000
_SMALL_BYTES = 2**30


def check_disk(disk: DiskFacts) -> Iterator[Finding]:
    """The root can be written and locked, and has space for the sweep."""
    if disk.write_error is not None:
        yield fail("disk", f"{disk.root} cannot be written: {disk.write_error}", _OTHER_ROOT)
        return
    if disk.lock_error is not None:
        fix = "choose a root on another file system, or ask your site about hard links there"
        yield fail("locks", f"a lock in {disk.root} cannot be held: {disk.lock_error}", fix)
    else:
        yield ok("locks", f"locks hold in {disk.root}")
    yield from _check_space(disk)


def _check_space(disk: DiskFacts) -> Iterator[Finding]:
    if disk.free_files is not None and disk.free_files < _FEW_FILES:
        yield warn("disk", f"{disk.root} can have only {disk.free_files} more files", _OTHER_ROOT)
    if disk.free_bytes is None:
        return
    free_bytes, what = disk.free_bytes, "free"
    if disk.quota_bytes is not None and disk.quota_bytes < free_bytes:
        free_bytes, what = disk.quota_bytes, "left of your quota"
    text = f"{disk.root} has {_gb(free_bytes)} GB {what}"
    if disk.expected_bytes is not None:
        text += f"; the sweep writes about {_gb(disk.expected_bytes)} GB"
        if disk.expected_bytes > free_bytes:
            fix = f"{_OTHER_ROOT}; save_model: false writes no trained models"
            yield fail("disk", text, fix)
            return
    elif free_bytes < _SMALL_BYTES:
        yield warn("disk", text, _OTHER_ROOT)
        return
    yield ok("disk", text)


def _gb(size_bytes: int) -> str:
    """Bytes as 10^9 bytes.

    Example:
        >>> _gb(2_500_000_000), _gb(1_000_000)
        ('2.5', '0.001')
    """
    return f"{size_bytes / 1e9:.3g}"
