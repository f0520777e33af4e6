"""When the script of a smoke run is stopped: after its first line of metrics, or when it has run long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from disttrain.records.script_metrics import metrics_files

# Rank 0 sends it to the other ranks before it stops its script.
ENOUGH = "enough"


def smoke_stop(
    run_dir: Path, rank: int, after_s: float | None, clock: Callable[[], float] = time.monotonic
) -> Callable[[], bool] | None:
    """A function that says whether the scripts of a smoke run have shown enough; None for any other run.

    Args:
        run_dir: The folder of the run.
        rank: The rank. Rank 0 decides for all: on the others the function never says so.
        after_s: The seconds after which a script has run long enough; None for a run that is not stopped.
        clock: A function that returns the present time in seconds.
    """
    if after_s is None:
        return None
    if rank != 0:
        return lambda: False
    end_s, size_bytes = clock() + after_s, _logged_bytes(run_dir)
    return lambda: clock() >= end_s or _logged_bytes(run_dir) > size_bytes


def _logged_bytes(run_dir: Path) -> int:
    """The size of all metrics of a run. An earlier attempt may have logged some."""
    return sum(path.stat().st_size for paths in metrics_files(run_dir).values() for path in paths)
