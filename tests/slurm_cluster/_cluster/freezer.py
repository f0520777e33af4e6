"""The v1 freezer: with it, proctrack/cgroup finds every process of a job, orphans included.

The hierarchy is mounted in a mount namespace that exists for one command, or for one node's slurmd. The machine's own
mounts do not change, and a machine that uses only cgroup v2 can have the freezer too.
"""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from _cluster.errors import ClusterError
from _cluster.layout import NODES
from _cluster.processes import POLL_S

MOUNT = 'mount -t cgroup -o freezer cgroup "$0"'
# slurmd -N names its group after the node.
NODE_GROUPS = tuple(f"slurm_{node.name}" for node in NODES)


def can_mount(folder: Path) -> bool:
    return _with_freezer(folder, "true").returncode == 0


def thaw(folder: Path, groups: Sequence[str] = NODE_GROUPS) -> None:
    """Let the cluster's frozen processes run: a frozen process does not even react to SIGKILL."""
    _with_freezer(
        folder, f"find {_paths(groups)} -name freezer.state 2>/dev/null | while read f; do echo THAWED >$f; done"
    )


def remove_groups(folder: Path, groups: Sequence[str] = NODE_GROUPS, *, limit_s: float = 3) -> None:
    """Remove the groups that slurmd made on the nodes, after their processes have ended.

    Raises:
        ClusterError: A group still has processes after `limit_s` seconds.
    """
    paths = _paths(groups)
    script = f"find {paths} -depth -type d -exec rmdir {{}} + 2>/dev/null; ls -d {paths} 2>/dev/null || true"
    end_s = time.monotonic() + limit_s
    while left := _with_freezer(folder, script).stdout.split():
        if time.monotonic() > end_s:
            raise ClusterError(f"control groups of the freezer are still in use: {left}")
        time.sleep(POLL_S)


def _paths(groups: Sequence[str]) -> str:
    return " ".join(f'"$0"/{group}' for group in groups)


def _with_freezer(folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    command = ["unshare", "--mount", "sh", "-c", f"{MOUNT} 2>/dev/null || exit 1; {script}", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)
