"""Owns every name, address, port and path of the test cluster."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from _cluster.errors import ClusterError

STATE_VARIABLE = "SLURM_CLUSTER_DIR"
DEFAULT_STATE = "/tmp/sweeptest-slurm"
SOURCE = Path(__file__).resolve().parent.parent

CLUSTER_NAME = "sweeptest"
ACCOUNTING_DATABASE = "slurm_acct_db"
BRIDGE = "sweeptest-br"
NETWORK = "10.77.0.0/24"
LOGIN_ADDRESS = "10.77.0.1"

# The machine's own Slurm may use the default ports (6817 to 6819); these are below Linux's ephemeral range.
SLURMCTLD_PORT = 27817
SLURMD_PORT = 27818
SLURMDBD_PORT = 27819


@dataclass(frozen=True)
class Host:
    """One simulated host: a network namespace with its own host name and an address on the bridge."""

    name: str
    address: str

    @property
    def netns(self) -> str:
        """Name of the network namespace and of its interface on the bridge (at most 15 characters)."""
        return f"sweeptest-{self.name}"


CONTROLLER = Host("ctl", "10.77.0.2")
NODES = (Host("node1", "10.77.0.11"), Host("node2", "10.77.0.12"))
HOSTS = (CONTROLLER, *NODES)
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", *(node.name for node in NODES))


@dataclass(frozen=True)
class Layout:
    """The paths of one cluster; all are under `state`, except the hosts files in /etc/netns."""

    state: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Layout":
        """The layout in the folder of SLURM_CLUSTER_DIR, or in the default folder.

        Raises:
            ClusterError: The folder's name cannot stand in slurm.conf, or is too long for a Unix socket's path
                (107 bytes).
        """
        text = environ.get(STATE_VARIABLE) or DEFAULT_STATE
        if not re.fullmatch(r"/[A-Za-z0-9._/-]{1,69}", text) or os.path.normpath(text) != text:
            hint = "give an absolute path of at most 70 characters: letters, digits and ._/-"
            raise ClusterError(f"{STATE_VARIABLE}={text!r}: {hint}")
        return cls(Path(text))

    @property
    def stamp(self) -> Path:
        """Marks the folder as the cluster's, so that `down` never deletes another folder of this name."""
        return self.state / ".sweeptest-cluster"

    @property
    def slurm_conf(self) -> Path:
        return self.state / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.state / "munge" / "munge.socket"

    @property
    def database_socket(self) -> Path:
        return self.state / "database" / "mariadb.socket"

    @property
    def cgroup_mount(self) -> Path:
        return self.state / "cgroup" / "freezer"

    @property
    def marker(self) -> str:
        """An environment entry that only this cluster's daemons have; a process that has it may be ended."""
        return f"SWEEPTEST_DAEMON_OF={self.state}"

    def log(self, daemon: str) -> Path:
        return self.state / "log" / f"{daemon}.log"

    def pid_file(self, daemon: str) -> Path:
        return self.state / "run" / f"{daemon}.pid"

    def client_environ(self) -> dict[str, str]:
        """A small environment for Slurm's commands: the caller's SLURM_* and SINFO_* cannot change their output."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.slurm_conf),
        }
