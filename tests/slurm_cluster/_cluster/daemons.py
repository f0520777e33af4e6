"""The command line of each daemon, the order in which they start, and the check that each one is ready."""

import os
import secrets
import shutil
import socket
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

from _cluster.errors import ClusterError
from _cluster.layout import ACCOUNTING_DATABASE, CLUSTER_NAME, CONTROLLER, NODES, SLURMDBD_PORT, Host, Layout
from _cluster.network import check_nodes_meet, create_network, on_host
from _cluster.processes import log_tail, output_of, start_daemon, succeeds, wait_until

# The database is deleted with the cluster, so it needs no durability; the small log makes its start quick.
DATABASE_OPTIONS = (
    "--skip-networking",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-log-file-size=16M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-lock-wait-timeout=900",
)
# plnd: idle, and reserved by backfill for a job that waits for more resources.
GOOD_STATES = ("idle", "mix", "alloc", "comp", "plnd")


def start_all(layout: Layout, *, freezer: bool) -> None:
    """Start everything; return when both nodes are idle, accounting answers and the nodes reach each other."""
    install = _install_database(layout)
    create_network(layout)
    _make_gpus(layout)
    _start_munged(layout)
    _start_database(layout, install)
    _start_accounting(layout)
    # At the same time: slurmd retries until slurmctld answers.
    slurmctld = start_daemon(layout, "slurmctld", on_host(CONTROLLER, ["slurmctld", "-D"]))
    slurmds = [_start_slurmd(layout, node, freezer=freezer) for node in NODES]
    wait_until(layout, "slurmctld", slurmctld, lambda: succeeds(["scontrol", "ping"], env=layout.client_environ()))
    for node, process in zip(NODES, slurmds, strict=True):
        wait_until(layout, node.name, process, partial(_is_ready, layout, node))
    check_nodes_meet(sys.executable)


def node_states(layout: Layout) -> dict[str, str]:
    """State of each node in the words of sinfo's %t; empty while slurmctld does not answer."""
    try:
        text = output_of(["sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %t"], env=layout.client_environ(), timeout_s=20)
    except ClusterError:
        return {}
    return dict(line.split() for line in text.splitlines())


def _is_ready(layout: Layout, node: Host) -> bool:
    return node_states(layout).get(node.name) in GOOD_STATES


def accounting_answers(layout: Layout) -> bool:
    command = ["sacctmgr", "-n", "-P", "list", "cluster", "format=Cluster"]
    try:
        return CLUSTER_NAME in output_of(command, env=layout.client_environ(), timeout_s=20).split()
    except ClusterError:
        return False


def _make_gpus(layout: Layout) -> None:
    for index in range(4):
        # The null device (1, 3): Slurm only reads that the file exists, and its device number.
        os.mknod(layout.state / f"gpu{index}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def _start_munged(layout: Layout) -> None:
    folder = layout.munge_socket.parent
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    for path in (folder, key):
        shutil.chown(path, "munge", "munge")
    files = [f"--{what}-file={folder / what}" for what in ("key", "log", "pid", "seed")]
    command = ["munged", "--foreground", f"--socket={layout.munge_socket}", *files]
    process = start_daemon(layout, "munged", command, user="munge")
    wait_until(layout, "munged", process, lambda: _accepts(layout.munge_socket))


def _install_database(layout: Layout) -> "subprocess.Popen[bytes]":
    """Begin to fill a new data folder. This is the slowest part; the network is made during this time."""
    data = layout.database_socket.parent / "data"
    command = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
    # The root user of the machine is root@localhost on the socket, so no password is needed.
    command += ["--auth-root-authentication-method=socket", "--auth-root-socket-user=root"]
    return start_daemon(layout, "mariadb-install-db", command)


def _start_database(layout: Layout, install: "subprocess.Popen[bytes]") -> None:
    if install.wait(timeout=60) != 0:
        raise ClusterError(f"mariadb-install-db failed:\n{log_tail(layout, 'mariadb-install-db')}")
    data = layout.database_socket.parent / "data"
    command = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={layout.database_socket}"]
    process = start_daemon(layout, "mariadbd", [*command, *DATABASE_OPTIONS])
    wait_until(layout, "mariadbd", process, lambda: _accepts(layout.database_socket))
    # slurmdbd would create it after a first connection that fails. With MariaDB's client library 11.8 (Debian 13) the
    # next connection then ends with "Number of columns in result (=1) set execeeds maxmimum allowed number of columns".
    client = ["mariadb", "--no-defaults", "--user=root", f"--socket={layout.database_socket}"]
    output_of([*client, f"--execute=CREATE DATABASE {ACCOUNTING_DATABASE}"], env=layout.client_environ())


def _start_accounting(layout: Layout) -> None:
    environ = {"MYSQL_UNIX_PORT": str(layout.database_socket)}
    process = start_daemon(layout, "slurmdbd", on_host(CONTROLLER, ["slurmdbd", "-D"]), environ=environ)
    wait_until(layout, "slurmdbd", process, lambda: _accepts((CONTROLLER.address, SLURMDBD_PORT)))
    # slurmctld of 22.05 does not register itself with accounting; sacct would stay empty.
    add = ["sacctmgr", "-i", "add", "cluster", CLUSTER_NAME]
    output_of(add, env=layout.client_environ())


def _start_slurmd(layout: Layout, node: Host, *, freezer: bool) -> "subprocess.Popen[bytes]":
    command = ["slurmd", "-D", "-N", node.name]
    if freezer:
        # `ip netns exec` gives the node its own mount namespace; the mount ends with the namespace.
        script = 'mount -t cgroup -o freezer cgroup "$0" && exec "$@"'
        command = ["sh", "-c", script, str(layout.cgroup_mount), *command]
    return start_daemon(layout, node.name, on_host(node, command))


def _accepts(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        return client.connect_ex(str(address) if isinstance(address, Path) else address) == 0
