"""The signals of a process that supervises a script: it waits for them, and passes most of them on to the script."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from disttrain.environment.slurm_step import in_slurm_step

WARNING = signal.SIGUSR2  # Slurm sends it before a time limit and for a preemption
# A script must not die of these only because it has no handler for them.
_IGNORED_BY_SCRIPT = (WARNING, signal.SIGQUIT)
_RESET_IN_SCRIPT = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGCONT)
_CGROUP = Path("/proc/self/cgroup")
FORWARDED = frozenset({WARNING, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1})
_ENDINGS = (signal.SIGTERM, signal.SIGINT)
_HANDLED = (*FORWARDED.difference(_ENDINGS), signal.SIGCHLD)


class Signals:
    """The signals that have come, as a file descriptor that becomes readable.

    Args:
        receiver: The end of a socket pair into which Python writes the number of each signal.
    """

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver

    def fileno(self) -> int:
        return self._receiver.fileno()

    def read(self) -> list[signal.Signals]:
        """The signals that have come since the last call."""
        with contextlib.suppress(BlockingIOError):
            return [signal.Signals(number) for number in self._receiver.recv(4096)]
        return []


@contextmanager
def caught_signals() -> Iterator[Signals]:
    """Notes the signals within the block, except for those that `caught_endings` catches.

    Only the main thread can do this.
    """
    receiver, sender = socket.socketpair()
    before: dict[signal.Signals, Any] = {}
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        former_fd = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            for number in _HANDLED:
                before[number] = signal.signal(number, _note)
            before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
            yield Signals(receiver)
        finally:
            signal.set_wakeup_fd(former_fd)
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def caught_endings() -> Iterator[None]:
    """Notes SIGTERM and SIGINT too, within a block of `caught_signals`: neither ends this process.

    Before it has a script, it ends at once: it may wait for the other ranks, and nothing is to be saved.
    """
    before = {number: signal.signal(number, _note) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _note(_number: int, _frame: FrameType | None) -> None:
    """A handler in Python, so that Python writes the number of the signal into the socket."""


def prepare_script_signals(warning: signal.Signals = WARNING) -> None:
    """Sets the signals in the process of the script, before its program starts.

    Args:
        warning: The signal that the script gets as a warning. A script that has no handler for it ignores it, except
            for SIGTERM and SIGINT, which the user has chosen to end it.
    """
    for number in _RESET_IN_SCRIPT:
        signal.signal(number, signal.SIG_DFL)
    ignored = set(_IGNORED_BY_SCRIPT)
    if warning not in (signal.SIGTERM, signal.SIGINT):
        ignored.add(warning)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def signals_to_forward(environ: Mapping[str, str]) -> frozenset[signal.Signals]:
    """The signals that the script gets from this process alone; their sender sends the others to both.

    Slurm signals every process of a step, unless it tracks them with cgroups: then only those that it has started. A
    terminal sends an interrupt to every process in its foreground.
    """
    if in_slurm_step(environ) and "/slurm" not in _text(_CGROUP):
        return frozenset()
    with contextlib.suppress(OSError):
        if os.tcgetpgrp(0) == os.getpgrp():
            return FORWARDED - {signal.SIGINT}
    return FORWARDED


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
