"""Makes and removes the simulated hosts: a bridge, and a network namespace with names and an address for each host."""

import contextlib
import shutil
import subprocess
from pathlib import Path

from _cluster.errors import ClusterError
from _cluster.layout import BRIDGE, HOSTS, LOGIN_ADDRESS, NETWORK, NODES, SLURMD_PORT, Host, Layout
from _cluster.processes import NETNS_FOLDER, output_of, succeeds

HOSTS_FOLDER = Path("/etc/netns")


def bridge_owner() -> str | None:
    """State folder of the cluster that owns the bridge, "" for an incomplete bridge, None without a bridge."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/sys/class/net/{BRIDGE}/ifalias").read_text().strip()
    return None


def foreign_route() -> str | None:
    """A route of the machine into the cluster's network, None if the network is free."""
    routes = output_of(["ip", "-4", "route", "show", "root", NETWORK]).splitlines()
    return next((route.strip() for route in routes if BRIDGE not in route), None)


def missing_parts() -> list[str]:
    """The parts of the network that do not exist."""
    parts = [NETNS_FOLDER / host.netns for host in HOSTS] + [HOSTS_FOLDER / host.netns / "hosts" for host in HOSTS]
    return [str(part) for part in parts if not part.exists()]


def create_network(layout: Layout) -> None:
    if not NETNS_FOLDER.exists():
        # `ip netns add` makes this folder and mounts it on itself. Then remove_network must remove both.
        (layout.state / "made-run-netns").touch()
    _ip(f"link add name {BRIDGE} type bridge")
    output_of(["ip", "link", "set", "dev", BRIDGE, "alias", str(layout.state)])
    _ip(f"address add {LOGIN_ADDRESS}/24 dev {BRIDGE}")
    _ip(f"link set dev {BRIDGE} up")
    for host in HOSTS:
        _create_host(host)


def _create_host(host: Host) -> None:
    # `ip netns exec` mounts this hosts file over /etc/hosts: names resolve inside, the machine's file stays.
    folder = HOSTS_FOLDER / host.netns
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["127.0.0.1 localhost", f"{LOGIN_ADDRESS} login", *(f"{peer.address} {peer.name}" for peer in HOSTS)]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    _ip(f"netns add {host.netns}")
    _ip(f"link add name {host.netns} type veth peer name eth0 netns {host.netns}")
    _ip(f"link set dev {host.netns} master {BRIDGE} up")
    _ip(f"-n {host.netns} address add {host.address}/24 dev eth0")
    _ip(f"-n {host.netns} link set dev eth0 up")
    _ip(f"-n {host.netns} link set dev lo up")


def remove_network(layout: Layout) -> None:
    """Remove all existing parts of the network, after the processes in it have ended."""
    for host in HOSTS:
        if (NETNS_FOLDER / host.netns).exists() and not succeeds(["ip", "netns", "delete", host.netns]):
            # An interrupted `up`: the name is a plain file on which no namespace was mounted yet.
            (NETNS_FOLDER / host.netns).unlink(missing_ok=True)
        _delete_link(host.netns)
        shutil.rmtree(HOSTS_FOLDER / host.netns, ignore_errors=True)
    _delete_link(BRIDGE)
    if HOSTS_FOLDER.is_dir() and not any(HOSTS_FOLDER.iterdir()):
        HOSTS_FOLDER.rmdir()
    made = layout.state / "made-run-netns"
    if made.exists() and NETNS_FOLDER.is_dir() and not any(NETNS_FOLDER.iterdir()):
        while succeeds(["umount", str(NETNS_FOLDER)]):
            pass
        NETNS_FOLDER.rmdir()


def _delete_link(name: str) -> None:
    # The kernel also removes an interface some moments after its namespace: a missing interface is no error.
    if Path(f"/sys/class/net/{name}").exists():
        subprocess.run(["ip", "link", "delete", "dev", name], capture_output=True)
        if Path(f"/sys/class/net/{name}").exists():
            raise ClusterError(f"the network interface {name} cannot be removed")


def on_host(host: Host, command: list[str]) -> list[str]:
    """The command line that runs a command on a simulated host, under its host name; each wrapper execs the next."""
    script = 'hostname "$1" && shift && exec "$@"'
    return ["ip", "netns", "exec", host.netns, "unshare", "--uts", "sh", "-c", script, "sh", host.name, *command]


def check_nodes_meet(python: str) -> None:
    """Check that the first node reaches the second by its name, as the ranks of a job must.

    Raises:
        ClusterError: It does not; the usual reason is a firewall that filters bridged packets.
    """
    first, second = NODES
    code = f"import socket; socket.create_connection(({second.name!r}, {SLURMD_PORT}), 3).close()"
    try:
        output_of(on_host(first, [python, "-c", code]))
    except ClusterError as error:
        hint = "does the machine's firewall filter bridged packets (net.bridge.bridge-nf-call-iptables)?"
        raise ClusterError(f"{first.name} cannot reach {second.name}: {hint}\n{error}") from error


def _ip(arguments: str) -> None:
    output_of(["ip", *arguments.split()])
