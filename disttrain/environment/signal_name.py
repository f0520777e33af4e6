"""The name of a signal, as a person reads it."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """The name of a signal.

    Example:
        >>> signal_name(9), signal_name(125)
        ('SIGKILL', 'signal 125')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
