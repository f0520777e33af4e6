"""The process of a local queue: its identity in the ledger, and whether it is alive, seen from any machine."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from jobs.local.local_run import is_alive
from jobs.storage.ledger import QueueProcess
from jobs.storage.processes import has_ended, pid_space, start_ticks

# Its machine may be slow for a while, and an NFS client may show a time of change that is a minute old.
BEAT_S = 15.0
LOST_S = 240.0


def identify(pid: int) -> QueueProcess:
    """The identity of a process of this machine."""
    created_s = psutil.Process(pid).create_time()
    return QueueProcess(socket.gethostname(), pid, created_s, pid_space(), start_ticks(pid))


def heartbeat_file(queue: QueueProcess, logs: Path) -> Path:
    """The file that shows other machines that a queue is alive: the queue changes it again and again."""
    return logs / f"queue-{queue.pid}-{queue.start_ticks or 0}.alive"


@contextlib.contextmanager
def beating(file: Path) -> Iterator[None]:
    """Changes a heartbeat file again and again, and removes it at the end."""
    stop = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk must not end the queue
                file.touch()
            if stop.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def is_queue_alive(queue: QueueProcess, logs: Path) -> bool:
    """Whether the process of a local queue exists.

    Args:
        queue: The process as the ledger names it.
        logs: The folder of the sweep's logs, with the heartbeat file. Only that tells of a process on another machine,
            before a restart of this one, or in another container. The queue of a former release has none; on another
            host it counts as alive.
    """
    if queue.pid_space is not None and queue.pid_space == pid_space():
        return not has_ended(queue.pid, queue.start_ticks)
    if queue.pid_space is None and queue.host == socket.gethostname():
        return _is_same_process(queue)
    try:
        # A file that is opened is looked up on the server; its time of change is of the server's clock.
        with heartbeat_file(queue, logs).open("rb") as file:
            beat_s = os.fstat(file.fileno()).st_mtime
    except OSError:
        return queue.pid_space is None
    return _clock_of(logs) - beat_s < LOST_S


def _is_same_process(queue: QueueProcess) -> bool:
    try:
        # Two readings of one start time differ by rounding. The start time of a process that reuses the pid differs
        # by far more.
        process = psutil.Process(queue.pid)
        return abs(process.create_time() - queue.created_s) < 2 and is_alive(process)
    except psutil.NoSuchProcess:
        return False


def _clock_of(folder: Path) -> float:
    """The present time by the clock that stamps the files of a folder; this machine's if the folder is read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()
