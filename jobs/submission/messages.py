"""Lines for the user. A reader that has left must not end a submission in its middle."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(line: str, stream: TextIO | None = None) -> None:
    """Prints a line. A reader that has left (| head) and a full disk must not end a submission in its middle."""
    stream = stream or sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def note(text: str) -> None:
    """Prints a note on stderr."""
    say(f"note: {text}", sys.stderr)
