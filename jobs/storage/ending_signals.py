"""Signals that end a process, as exceptions: what it holds is given back, and what it has started is ended."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


def _exit_on_signal(number: int, _: object) -> None:
    sys.exit(128 + number)


def exiting_handlers() -> dict[signal.Signals, Handler]:
    """Handlers that exit, for SIGTERM and SIGHUP, whose default action leaves no time for a cleanup.

    A signal that is ignored stays ignored: nohup ignores SIGHUP, so that a process outlives its terminal.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    return {number: _exit_on_signal for number in numbers if signal.getsignal(number) == signal.SIG_DFL}


@contextlib.contextmanager
def signal_handlers(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Installs these signal handlers, and restores the earlier ones at the end."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
