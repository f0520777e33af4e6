"""The kinds of reasons for which a run does not complete, and the kind of an error that a rank has reported."""

from __future__ import annotations

import re
from typing import Literal

from disttrain.records.summary_types import Failure

Kind = Literal[
    "GPU memory",
    "host memory",
    "time limit",
    "preemption",
    "cancelled",
    "node failure",
    "communication",
    "import error",
    "before Python",
    "missing file",
    "disk full",
    "signal",
    "user error",
    "no progress",
    "exception",
    "unknown",
]

# The kinds that the class of an exception or its message show; the first that fits.
_BY_ERROR: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("GPU memory", re.compile(r"^OutOfMemoryError: |CUDA (?:error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED")),
    ("host memory", re.compile(r"^\w*MemoryError: |DefaultCPUAllocator: can't allocate|\[Errno 12\]")),
    ("host memory", re.compile(r"Cannot allocate memory|DataLoader worker .* killed by signal: Killed")),
    ("disk full", re.compile(r"\[Errno 28\]|No space left on device|\[Errno 122\]|[Dd]isk quota exceeded")),
    ("import error", re.compile(r"^(?:ImportError|ModuleNotFoundError): |the package '\S+' is not installed")),
    ("missing file", re.compile(r"^(?:FileNotFoundError|LocalEntryNotFoundError|DatasetNotFoundError): ")),
    ("missing file", re.compile(r"\[Errno 2\]|'[^']*/[^']*' does not exist|[Nn]o such file")),
    ("signal", re.compile(r"^SIG[A-Z0-9]+: ")),  # ended a user's script
    ("communication", re.compile(r"^(?:Dist\w*Error|CollectiveTimeout): |Timed out waiting|[Ww]atchdog caught")),
)
# The messages of gloo and NCCL when the process at the other end of a connection has exited.
_LOST_PEER = re.compile(r"[Cc]onnection (closed|reset)|[Bb]roken pipe|remote process exited|socket.*closed", re.DOTALL)


def kind_of(failure: Failure) -> Kind:
    """The kind of the error that a rank has reported."""
    text = f"{failure.error}: {failure.message}"
    for kind, pattern in _BY_ERROR:
        if pattern.search(text):
            return kind
    if lost_peer(failure):
        return "communication"
    return "user error" if failure.user_error else "exception"


def lost_peer(failure: Failure) -> bool:
    """Whether a rank only lost its connection to another one, which is then the one that failed."""
    return _LOST_PEER.search(failure.message) is not None
