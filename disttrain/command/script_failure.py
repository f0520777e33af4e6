"""Why a script has failed, for a person: by torch's error file, by the end of its stderr, or by its exit status."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from disttrain.environment.signal_name import signal_name
from disttrain.errors import STOPPED_STATUS, shorten
from disttrain.records.json_values import DamagedFile, read_object
from disttrain.records.summary_types import Failure

_STDERR = 2
_TAIL_BYTES = 2**16
_TRACEBACK = "Traceback (most recent call last):"
# torch writes the rank before each line of a traceback.
_RANK_PREFIX = re.compile(r"^\[(?:rank|default)\d+\]:\s?")
_ERROR_LINE = re.compile(r"^(?P<name>[A-Za-z_][\w.]*)(?:: (?P<message>.*))?$")
# The last lines of a program that writes no traceback: `RuntimeError: no data`, `train.py: error: unrecognized`.
_NAMED_ERROR = re.compile(r"^(?P<name>(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)): (?P<message>.+)$")
# torchrun's own errors only say that a worker has failed, or that torchrun was ended.
_ABOUT_WORKERS = ("ChildFailedError", "SignalException")
_FAILED_WORKER = re.compile(r"^.*failed \(exitcode: (-?\d+)\) local_rank: \d+ \(pid: (\d+)\)", re.MULTILINE)
_EXIT_CODE = re.compile(r"^\s*exitcode\s*: (-?\d+)\b", re.MULTILINE)
_SHELL = 128  # A shell adds the number of the signal that has ended its program.
_MOST_LINES = 40  # of the traceback in the record


@dataclass(frozen=True)
class StderrMark:
    """A position in the file to which this process's stderr goes; None if it is no file that can be read again."""

    offset: int | None

    @classmethod
    def now(cls) -> StderrMark:
        try:
            state = os.fstat(_STDERR)
        except OSError:
            return cls(None)
        return cls(state.st_size if stat.S_ISREG(state.st_mode) else None)

    def text(self) -> str:
        """The end of what was written after this position."""
        if self.offset is None:
            return ""
        try:
            with open(f"/proc/self/fd/{_STDERR}", "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(self.offset, size - _TAIL_BYTES))
                return file.read(_TAIL_BYTES).decode(errors="replace")
        except OSError:
            return ""


def script_failure(rank: int, status: int, error_file: Path, stderr: str) -> Failure:
    """The failure of a script.

    Args:
        rank: The rank.
        status: The exit status of the script, negative for a signal.
        error_file: The file into which torch's `record` may have written an exception.
        stderr: The end of what the script has written to stderr.
    """
    error, message = _recorded(error_file) or _last_error(stderr) or _by_status(status, stderr)
    return Failure(
        rank=rank,
        host=socket.gethostname(),
        time_s=time.time(),
        error=error,
        message=message,
        traceback="\n".join(_lines(stderr)[-_MOST_LINES:]),
        user_error=False,
    )


def worker_status(
    status: int, stderr: str, *, terminated: bool = False, warned: Collection[int] = (), restarted: bool = False
) -> int:
    """The exit status of the first worker that failed, from torchrun's report; torchrun's own without one.

    Args:
        status: The exit status of torchrun, which is 1 if a worker has failed, and after SIGTERM.
        stderr: The end of what torchrun has written.
        terminated: Whether torchrun has got SIGTERM, and has passed it on to its workers.
        warned: The processes of the workers that were warned. How they have failed counts more than later workers.
        restarted: Whether torchrun has restarted them after that. Without another report, they have saved.

    Example:
        >>> worker_status(1, "Root Cause (first observed failure):\\n exitcode : 85 (pid: 7)\\n"), worker_status(1, "")
        (85, 1)
    """
    if status != 1:
        return status
    for code, pid in _FAILED_WORKER.findall(stderr):
        if int(pid) in warned:
            return int(code)
    if restarted:
        return STOPPED_STATUS
    _, _, cause = stderr.rpartition("Root Cause")
    match = _EXIT_CODE.search(cause)
    if match is not None:
        return int(match[1])
    return -signal.SIGTERM if terminated else status


def _recorded(error_file: Path) -> tuple[str, str] | None:
    """The error in the file of torch's `record`."""
    try:
        values = read_object(error_file) or {}
    except DamagedFile:
        return None
    text = values.get("message")
    if isinstance(text, dict):
        text = text.get("message")
    if not isinstance(text, str):
        return None
    name, separator, message = text.partition(": ")
    if not separator or not re.fullmatch(r"[\w.]+", name):
        return "Error", text
    name = name.rpartition(".")[2]
    return None if name in _ABOUT_WORKERS else (name, message)


def _last_error(stderr: str) -> tuple[str, str] | None:
    """The error that the last traceback ends with, or the last line that names one."""
    lines = _lines(stderr)
    starts = [index for index, line in enumerate(lines) if line == _TRACEBACK]
    for start in reversed(starts):
        end = next((index for index in range(start + 1, len(lines)) if not lines[index].startswith(" ")), None)
        match = _ERROR_LINE.match(lines[end]) if end is not None else None
        if match is not None and _class_name(match) not in _ABOUT_WORKERS:
            return _class_name(match), match["message"] or ""
    for line in reversed(lines):
        match = _NAMED_ERROR.match(line)
        if match is not None and _class_name(match) not in _ABOUT_WORKERS:
            return _class_name(match), match["message"]
    return None


def _class_name(match: re.Match[str]) -> str:
    return match["name"].rpartition(".")[2]


def _by_status(status: int, stderr: str) -> tuple[str, str]:
    if status < 0:
        name = signal_name(-status)
        return name, f"the script was ended by {name}"
    message = f"the script ended with exit status {status}"
    if status > _SHELL and (name := signal_name(status - _SHELL)).startswith("SIG"):
        return name, f"{message}, which a shell gives after {name}"
    torchruns = max((match.start() for match in _FAILED_WORKER.finditer(stderr)), default=len(stderr))
    lines = _lines(stderr[:torchruns])
    if lines:
        message += f"; its last line: {shorten(lines[-1].strip())}"
    return "ExitStatus", message


def _lines(stderr: str) -> list[str]:
    """The lines that are not blank, without torch's prefix, and only the last state of a progress bar."""
    lines = (_RANK_PREFIX.sub("", line.rpartition("\r")[2]).rstrip() for line in stderr.split("\n"))
    return [line for line in lines if line.strip()]
