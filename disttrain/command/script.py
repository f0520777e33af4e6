"""The process of the user's script: how it starts, and how it is ended."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from disttrain.command.signals import WARNING, prepare_script_signals
from disttrain.errors import UserError, shorten


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

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the script, not to its children."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def send_to_children(self, number: signal.Signals) -> None:
        """Sends a signal to the processes that the script has started itself."""
        for process in self._children(recursive=False):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def children(self) -> frozenset[psutil.Process]:
        """The processes that the script has started itself, and that have not ended."""
        return frozenset(self._children(recursive=False))

    def kill(self) -> None:
        """Ends the script and all its children now."""
        processes = self._children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _children(self, *, recursive: bool) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=recursive)
        except psutil.Error:
            return []


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
