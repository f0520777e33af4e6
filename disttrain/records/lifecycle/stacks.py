"""The files that say where a rank is if it hangs, and the Python stacks that it writes on a signal."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import signal
import sysconfig
from collections.abc import Iterable
from pathlib import Path, PurePath

# Slurm warns with USR2, and NCCL uses USR1.
STACKS_SIGNAL = signal.SIGQUIT
HANG_GLOB = "hang-rank*.json"
HANG_GLOBS = (HANG_GLOB, "stacks-rank*.txt", "flight-rank*.json")

# faulthandler marks the thread that received the signal, which is the main thread, and writes it last.
_CURRENT = re.compile(r"^Current thread .*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line \d+ in (?P<function>.*)$', re.MULTILINE)
_OWN_PACKAGE = "disttrain"
_LIBRARIES = (*{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},)


def stacks_name(rank: int) -> str:
    """The file name of one rank's stacks.

    Example:
        >>> stacks_name(3)
        'stacks-rank00003.txt'
    """
    return f"stacks-rank{rank:05d}.txt"


def flight_name(rank: int) -> str:
    """The file name of the last collectives of one rank, as torch's flight recorder has them."""
    return f"flight-rank{rank:05d}.json"


def hang_name(rank: int) -> str:
    """The file name of where one rank was when a step did not end."""
    return f"hang-rank{rank:05d}.json"


HANG_NAMES = (stacks_name, flight_name, hang_name)


def remove_hang_files(folder: Path, rank: int) -> None:
    """Removes these files of one rank, which an earlier attempt has left."""
    for name in HANG_NAMES:
        (folder / name(rank)).unlink(missing_ok=True)


def write_stacks_on_signal(path: Path) -> None:
    """Makes this process append its stacks to a file on a signal; the file is emptied.

    The handler is written in C, so it also runs while the main thread waits in an all-reduce.
    """
    file = path.open("ab")
    file.truncate(0)
    # Once registered, faulthandler takes its handler for installed, whatever has replaced it since an earlier run.
    faulthandler.unregister(STACKS_SIGNAL)
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)


def remove_if_empty(path: Path) -> None:
    """Removes the file of stacks that no one has requested. The signal still does not end the process."""
    with contextlib.suppress(OSError):
        if path.stat().st_size == 0:
            path.unlink()


def deepest_frame(frames: Iterable[tuple[str, str]]) -> str | None:
    """The module and the function of the deepest frame in this package or in the user's code, not in a library.

    Args:
        frames: The file and the function of each frame, the deepest first.

    Example:
        >>> deepest_frame([("/usr/lib/python3.12/threading.py", "wait"), ("/a/disttrain/data/images.py", "decode")])
        'images.decode'
    """
    for file, function in frames:
        path = PurePath(file)
        if file.startswith("<") or (_is_library(path) and _OWN_PACKAGE not in path.parts):
            continue
        return f"{path.stem}.{function}"
    return None


def last_frame(stacks: str) -> str | None:
    """The deepest frame of the main thread in the stacks that were written last; None if there are none.

    Example:
        >>> last_frame('Current thread 0x1 (most recent call first):\\n  File "/a/images.py", line 7 in decode\\n')
        'images.decode'
    """
    marks = list(_CURRENT.finditer(stacks))
    if not marks:
        return None
    stack, *_ = stacks[marks[-1].end() :].lstrip("\n").split("\n\n", 1)
    return deepest_frame((found["file"], found["function"]) for found in _FRAME.finditer(stack))


def _is_library(path: PurePath) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(part.startswith("python3.") for part in path.parts) or any(map(path.is_relative_to, _LIBRARIES))
