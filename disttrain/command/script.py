"""The process of the user's script: how it starts, and how it is ended."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from disttrain.command.signals import WARNING, prepare_script_signals
from disttrain.config.command.command_text import is_shell
from disttrain.errors import UserError, shorten

# The signals that a process ignores, or for which it has a handler.
_HANDLED = re.compile(r"^Sig(?:Ign|Cgt):\s*([0-9a-f]+)", re.MULTILINE)


class Script:
    """A running script. Its output goes where that of this process goes.

    Args:
        arguments: The program and its arguments.
        working_dir: The folder in which it starts.
        environ: Its environment.
        warning: The signal that warns it.

    Raises:
        UserError: The program cannot be started.
    """

    def __init__(
        self, arguments: Sequence[str], working_dir: Path, environ: Mapping[str, str],
        warning: signal.Signals = WARNING,
    ) -> None:  # fmt: skip
        self._left: list[psutil.Process] = []
        if not working_dir.is_dir():
            raise UserError(f"the working directory {str(working_dir)!r} does not exist on this node")
        try:
            self._process = subprocess.Popen(
                arguments,
                cwd=working_dir,
                env=environ,
                # No thread runs yet, so the child can run Python before its program starts.
                preexec_fn=functools.partial(prepare_script_signals, warning),
            )
        except FileNotFoundError as error:
            raise _not_found(arguments[0], working_dir, environ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            hint = None
            if isinstance(error, PermissionError):
                hint = "chmod +x it, or name its interpreter: python, bash"
            raise UserError(f"{shorten(arguments[0])} cannot be started: {reason}", hint=hint) from error

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def left_any(self) -> bool:
        """Whether a process still runs that the script had started before it was asked to end."""
        return any(map(_runs, self._left))

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the script, not to its children. A shell passes none on: so its programs get it too."""
        if number == signal.SIGTERM:
            # After the end of the script, they are no longer among its children.
            self._left = self._children(recursive=True) or self._left
        _send(number, list(self._own()))

    def warn(self, number: signal.Signals) -> None:
        """Sends the signal that warns of the end of the job; not to a shell that would only die of it."""
        _warn(number, list(self._own()))

    def send_to_children(self, number: signal.Signals) -> None:
        """Warns the processes that the script has started itself."""
        _warn(number, [process for child in self._children(recursive=False) for process in _with_programs(child)])

    def children(self) -> frozenset[psutil.Process]:
        """The processes that the script has started itself, and that have not ended."""
        return frozenset(self._children(recursive=False))

    def kill(self) -> None:
        """Ends the script and all its children now."""
        processes = self._children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        _send(signal.SIGKILL, [*processes, *self._left])

    def _own(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            yield from _with_programs(psutil.Process(self.pid))

    def _children(self, *, recursive: bool) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=recursive)
        except psutil.Error:
            return []


def _with_programs(process: psutil.Process) -> Iterator[psutil.Process]:
    """A process, and if it is a shell, the programs that it runs."""
    yield process
    with contextlib.suppress(psutil.Error):  # it has ended
        if is_shell(process.exe()):
            for child in process.children():
                yield from _with_programs(child)


def _warn(number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
    _send(number, [process for process in processes if not _is_untrapped_shell(process, number)])


def _send(number: signal.Signals, processes: Sequence[psutil.Process]) -> None:
    """Sends a signal to each process, the parents first: a shell must not go on after the end of its program."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _is_untrapped_shell(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether a process is a shell that a signal ends: it neither ignores it nor has a trap for it."""
    try:
        if not is_shell(process.exe()):
            return False
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8", errors="replace")
    except (psutil.Error, OSError):
        return False
    return not any(int(mask, 16) >> (number - 1) & 1 for mask in _HANDLED.findall(status))


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _not_found(program: str, working_dir: Path, environ: Mapping[str, str]) -> UserError:
    """The error for a program that cannot be found; also for one whose first line names no interpreter of this node."""
    path = environ.get("PATH", "")
    found = working_dir / program
    if os.sep not in program:
        found = Path(shutil.which(program, path=path) or "")
    if found.is_file():
        message = f"{program} cannot be started: its first line names a program that does not exist on this node"
        return UserError(message)
    if os.sep in program:
        return UserError(f"{program}: no such file in {working_dir}", hint="the command starts where you submit")
    return UserError(
        f"{program}: command not found on PATH {shorten(path)}",
        hint="activate its environment before sweep submit, or write that into setup of the cluster profile",
    )
