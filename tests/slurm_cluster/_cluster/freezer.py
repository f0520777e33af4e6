"""The v1 freezer, with which proctrack/cgroup finds every process of a job, orphans included.

The hierarchy is mounted in a mount namespace that lasts for one command, or for one node's slurmd: the machine's own
mounts stay as they are, and a machine that runs on cgroup v2 alone can still have it.
"""

import subprocess
import time
from pathlib import Path

from _cluster.errors import ClusterError
from _cluster.layout import NODES
from _cluster.processes import POLL_S

MOUNT = 'mount -t cgroup -o freezer cgroup "$0"'


def can_mount(folder: Path) -> bool:
    return _with_freezer(folder, "true").returncode == 0


def thaw(folder: Path) -> None:
    """Let the cluster's frozen processes run: a frozen one does not even take SIGKILL."""
    _with_freezer(folder, f"find {_groups()} -name freezer.state 2>/dev/null | while read f; do echo THAWED >$f; done")


def remove_groups(folder: Path, *, limit_s: float = 3) -> None:
    """Remove the groups that the nodes' slurmd made; their processes must have ended before.

    Raises:
        ClusterError: a group still has processes after `limit_s` seconds.
    """
    script = f"find {_groups()} -depth -type d -exec rmdir {{}} + 2>/dev/null; ls -d {_groups()} 2>/dev/null || true"
    end_s = time.monotonic() + limit_s
    while left := _with_freezer(folder, script).stdout.split():
        if time.monotonic() > end_s:
            raise ClusterError(f"control groups of the freezer that are still in use: {left}")
        time.sleep(POLL_S)


def _groups() -> str:
    # slurmd -N names its group after the node.
    return " ".join(f'"$0"/slurm_{node.name}' for node in NODES)


def _with_freezer(folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    command = ["unshare", "--mount", "sh", "-c", f"{MOUNT} 2>/dev/null || exit 1; {script}", str(folder)]
    return subprocess.run(command, capture_output=True, text=True)
