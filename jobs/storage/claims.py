"""Claims: locks made of files, for folders that several machines share.

flock is local to a node, or always succeeds, or is refused on many shared file systems. filelock's strict soft lock
needs only hard links and exclusive creation. Its claims never expire, so this module adds the rule for stale ones.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

from filelock import SoftFileLockProtocolError, StrictSoftFileClaim, StrictSoftFileLock, Timeout

from jobs.storage.processes import INITIAL_NAMESPACE, has_ended, pid_space

_POLL_S = 0.02
_STALE_CHECK_S = 0.5  # a holder may be killed while this process waits
_NAMESPACE_MARK = "?pidns-"  # what filelock adds to the name of the host in a container with its own process ids


class ClaimHeldError(TimeoutError):
    """Another process has the claim. `strerror` says who, where and since when; `hint` says what to do."""

    def __init__(self, path: Path, holder: str, hint: str) -> None:
        super().__init__(errno.ETIMEDOUT, f"held by {holder} ({hint})", str(path))
        self.holder = holder
        self.hint = hint


@contextlib.contextmanager
def claimed(path: Path, timeout_s: float) -> Iterator[None]:
    """Holds the claim of a path, which exists only as long as the process that holds it.

    A claim is taken over only if this machine can see that its process has ended: two holders are worse than a
    question. The claim of a process on another machine, which may be down, is for the user to remove.

    Args:
        path: The claim. Next to it is a folder with the files of its present holder and of those that wait for it.
        timeout_s: How long to wait for another holder.

    Raises:
        ClaimHeldError: Another process holds the claim.
        OSError: The claim cannot be written, or a file of it is damaged. Its filename is the path.
    """
    lock = StrictSoftFileLock(path, poll_interval=_POLL_S)
    try:
        _acquire(lock, path, timeout_s)
    except SoftFileLockProtocolError as error:
        message = f"{error.reason} (if no sweep command runs in this folder, remove {path} and {_files_of(path)})"
        raise OSError(errno.EPROTO, message, str(path)) from None
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: StrictSoftFileLock, path: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    wait_s = 0.0  # at first, so that a stale claim costs no wait
    while True:
        try:
            lock.acquire(timeout=wait_s)
            return
        except Timeout:
            claims = lock.claims
            stale = [claim.name for claim in claims if _is_stale(claim)]
            if not stale and time.monotonic() >= deadline:
                raise _held_error(claims, path) from None
        for name in stale:
            # Each claim has a name of its own, so nobody else's can be removed; another process may be faster.
            with contextlib.suppress(FileNotFoundError):
                lock.force_break(name)
        wait_s = min(_STALE_CHECK_S, max(0.0, deadline - time.monotonic()))


def _is_stale(claim: StrictSoftFileClaim) -> bool:
    return _is_of_this_machine(claim) and has_ended(claim.pid, _split_start(claim)[1])


def _is_of_this_machine(claim: StrictSoftFileClaim) -> bool:
    """Whether the process id of a claim is one of this machine's, whatever its name is now, and of this container's."""
    _, _, namespace = claim.hostname.partition(_NAMESPACE_MARK)
    boot = UUID(int=_split_start(claim)[0] % 2**128)
    return pid_space() == f"{boot}/{namespace or INITIAL_NAMESPACE}"


def _split_start(claim: StrictSoftFileClaim) -> tuple[int, int]:
    """The id of the boot and the start of the process in ticks; filelock notes both as one number."""
    return divmod(claim.start or 0, 2**64)


def _files_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.filelock")


def _held_error(claims: Sequence[StrictSoftFileClaim], path: Path) -> ClaimHeldError:
    hint = "wait until it has ended, then try again"
    for claim in sorted(claims, key=lambda claim: claim.state):  # the one that is held is before those that wait
        file = _files_of(path) / "claims" / claim.name
        with contextlib.suppress(FileNotFoundError):
            since = datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(sep=" ", timespec="seconds")
            host = claim.hostname.partition(_NAMESPACE_MARK)[0]
            if not _is_of_this_machine(claim):
                hint = f"wait until it has ended; if it or {host} is gone, remove {_files_of(path)}"
            return ClaimHeldError(path, f"process {claim.pid} of {_owner(file)} on {host} since {since}", hint)
    # It is free again, or a file of it is damaged and may still be in the making.
    hint = f"try again; if no sweep command runs in this folder, remove {path} and {_files_of(path)}"
    return ClaimHeldError(path, "another process", hint)


def _owner(file: Path) -> str:
    try:
        return file.owner()
    except KeyError:  # the user has no name on this machine
        return f"user {file.stat().st_uid}"
