"""The model of this host's CPU."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_name() -> str:
    """The model name; the architecture if the kernel does not report it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
