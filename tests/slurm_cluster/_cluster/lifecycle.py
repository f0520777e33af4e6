"""Starts and stops the complete cluster, one command at a time, and reports its state."""

import contextlib
import errno
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from _cluster import freezer
from _cluster.configs import fingerprint, write_configs
from _cluster.daemons import GOOD_STATES, accounting_answers, node_states, start_all
from _cluster.errors import CannotRunHereError, ClusterError
from _cluster.layout import NETWORK, NODES, STATE_VARIABLE, Layout
from _cluster.network import bridge_owner, foreign_route, missing_parts, remove_network
from _cluster.packages import install_missing, missing_packages, restore_policy
from _cluster.processes import dead_daemons, inside_cluster, kill_ours, output_of, say
from _cluster.releases import installed_release

LOCK_NAME = "\0sweeptest-slurm-cluster"
LOCK_LIMIT_S = 300


def up(layout: Layout) -> None:
    """Start the cluster from scratch, unless it is up and healthy."""
    check_possible()
    with exclusive():
        refuse_foreign(layout)
        reason = next(iter(problems(layout)), None)
        if reason is None:
            say(f"already up in {layout.state}")
            if _stamp_text(layout) != fingerprint():
                say("it was started from other files than these; to use these: `down`, then `up`")
            return
        if layout.state.exists() or bridge_owner() is not None:
            say(f"not healthy ({reason}): starting again from scratch")
        install_missing()  # first: removing a network needs `ip`
        clear_away(layout)
        _start(layout)


def down(layout: Layout) -> None:
    """Remove every process, namespace, interface, control group and file of a complete or partial cluster."""
    check_possible()
    with exclusive():
        refuse_foreign(layout)
        clear_away(layout)


def check_possible() -> None:
    """Raise CannotRunHereError if the cluster cannot run on this machine or for this user."""
    if os.geteuid() != 0:
        raise CannotRunHereError("not root: namespaces, a bridge and slurmd need root")
    if inside_cluster():
        raise CannotRunHereError("this is one of the cluster's own nodes: call it on the login side")
    try:
        output_of(["unshare", "--net", "--mount", "--uts", "true"])
    except ClusterError as error:
        # Reasons differ: a container without CAP_SYS_ADMIN, or a chroot whose root is no mount point.
        message = " ".join(str(error).split())
        raise CannotRunHereError(f"cannot make network namespaces and mounts: {message}") from error
    missing_packages()


def refuse_foreign(layout: Layout) -> None:
    """Raise ClusterError if the folder is not a cluster's, or if a cluster in another folder owns the network."""
    owner = bridge_owner()
    if owner and owner != str(layout.state):
        hint = f"set {STATE_VARIABLE}={owner} to use it or to take it down"
        raise ClusterError(f"a cluster already runs in {owner}: {hint}")
    if layout.state.is_symlink() or (layout.state.exists() and layout.state.stat().st_uid != 0):
        raise ClusterError(f"{layout.state} is not root's own folder: remove it, or set {STATE_VARIABLE}")
    if layout.state.exists() and not layout.stamp.exists() and any(layout.state.iterdir()):
        raise ClusterError(f"{layout.state} has files of another program: set {STATE_VARIABLE} to another folder")


def problems(layout: Layout) -> list[str]:
    """The reasons why the cluster is not healthy, the most important first; empty if it is healthy."""
    if not layout.slurm_conf.exists() or bridge_owner() != str(layout.state):
        return ["it is not up"]
    missing = [f"{name} is gone" for name in dead_daemons(layout)] + [f"{part} is gone" for part in missing_parts()]
    if missing:
        # Slurm's commands wait long for a missing daemon: run them only if all daemons run.
        return missing
    states = node_states(layout)
    bad_states = [
        f"{node.name} is {states.get(node.name, 'unknown to slurmctld')}"
        for node in NODES
        if states.get(node.name) not in GOOD_STATES
    ]
    return bad_states if accounting_answers(layout) else [*bad_states, "slurmdbd does not answer"]


def clear_away(layout: Layout) -> None:
    restore_policy()
    _stop(layout)
    if not layout.state.exists():
        return
    for path in layout.state.iterdir():
        # The stamp is deleted last: it still marks a folder that was only partly emptied.
        if path.is_dir():
            shutil.rmtree(path)
        elif path != layout.stamp:
            path.unlink()
    layout.stamp.unlink(missing_ok=True)
    layout.state.rmdir()


def _start(layout: Layout) -> None:
    route = foreign_route()
    if route is not None:
        raise CannotRunHereError(f"the network {NETWORK} is in use by this machine: {route!r}")
    began_s = time.monotonic()
    _make_folders(layout)
    release = installed_release()
    has_freezer = freezer.can_mount(layout.cgroup_mount)
    write_configs(layout, release, freezer=has_freezer)
    say(f"starting Slurm {release.text} in {layout.state}")
    try:
        start_all(layout, freezer=has_freezer)
    except BaseException:
        # The folder and its logs stay; the next `up` or `down` removes them.
        _stop(layout)
        raise
    say(f"up after {time.monotonic() - began_s:.1f} s")


def _stop(layout: Layout) -> None:
    # Any folder can be the mount point: the mount exists for one command only.
    probe = layout.cgroup_mount if layout.cgroup_mount.is_dir() else Path("/run")
    freezer.thaw(probe)
    kill_ours(layout)
    remove_network(layout)
    freezer.remove_groups(probe)


def _make_folders(layout: Layout) -> None:
    layout.state.mkdir(mode=0o755, exist_ok=True)
    layout.stamp.write_text(fingerprint())
    for name in ("etc", "log", "run", "munge", "slurmctld", "slurmd", "cgroup/freezer"):
        (layout.state / name).mkdir(parents=True)
    layout.database_socket.parent.mkdir(mode=0o700)


def _stamp_text(layout: Layout) -> str:
    return layout.stamp.read_text() if layout.stamp.exists() else ""


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Let only one `up` or `down` run at a time.

    The lock is an abstract socket: it leaves no file, it is free as soon as its process ends, and, like the bridge,
    there is one in each network namespace.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        end_s = time.monotonic() + LOCK_LIMIT_S
        reported = False
        while not _take(lock):
            if time.monotonic() > end_s:
                raise ClusterError(f"another `cluster` command still runs after {LOCK_LIMIT_S} s")
            if not reported:
                say("waiting for another `cluster` command to end")
                reported = True
            time.sleep(0.2)
        yield


def _take(lock: socket.socket) -> bool:
    try:
        lock.bind(LOCK_NAME)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def status_lines(layout: Layout) -> list[str]:
    """The lines of `status` about a running cluster."""
    environ = layout.client_environ()
    settings = dict(line.split("=", 1) for line in layout.slurm_conf.read_text().splitlines() if "=" in line)
    nodes = output_of(["sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T, %c CPUs, %G"], env=environ).splitlines()
    partitions = output_of(["sinfo", "-h", "-o", "%P %a, %D nodes, priority %p"], env=environ).splitlines()
    return [
        f"Slurm {installed_release().text}, {settings['ProctrackType']}, {settings['JobAcctGatherType']}",
        *(f"node {line}" for line in nodes),
        *(f"partition {line}" for line in partitions),
    ]
