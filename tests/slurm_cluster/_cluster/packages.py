"""Installs the distribution's packages, and prevents apt from starting their services."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from _cluster.errors import CannotRunHereError, ClusterError
from _cluster.processes import say

# The -core packages of MariaDB have the server and the client, but no service, no user and no data folder.
PACKAGES = (
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "slurm-wlm-mysql-plugin",
    "munge",
    "mariadb-server-core",
    "mariadb-client-core",
    "iproute2",
)
SERVICES = frozenset({"slurmctld", "slurmd", "slurmdbd", "munge"})
POLICY = Path("/usr/sbin/policy-rc.d")
SAVED_POLICY = Path("/usr/sbin/policy-rc.d.sweeptest-saved")
POLICY_TEXT = "#!/bin/sh\n# sweeptest: no service starts while the test cluster's packages are installed.\nexit 101\n"


def missing_packages() -> list[str]:
    """Packages that are not installed.

    Raises:
        CannotRunHereError: The system has no dpkg or apt.
    """
    if shutil.which("dpkg-query") is None or shutil.which("apt-get") is None:
        raise CannotRunHereError("no apt-get: the cluster needs the packages of Debian or Ubuntu")
    command = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *PACKAGES]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    installed = {line.split()[0] for line in lines if line.endswith(" installed")}
    return [package for package in PACKAGES if package not in installed]


def install_missing() -> None:
    missing = missing_packages()
    if not missing:
        return
    say(f"installing {' '.join(missing)}")
    with no_service_starts():
        if _apt("install", *missing).returncode != 0:
            # Package lists may be empty or old, as in a new container. An update takes time, so it runs only then.
            _apt("update")
            done = _apt("install", *missing)
            if done.returncode != 0:
                raise ClusterError(f"apt-get could not install the packages:\n{done.stdout[-3000:]}")
    if shutil.which("systemctl") is not None:
        # Services that were installed for tests must not start at the next boot.
        for service in sorted(SERVICES.intersection(missing)):
            subprocess.run(["systemctl", "disable", "--quiet", service], capture_output=True)


def _apt(verb: str, *packages: str) -> "subprocess.CompletedProcess[str]":
    # --no-remove: better no cluster than the removal of a MySQL server that someone needs.
    options = ["--yes", "--no-install-recommends", "--no-remove"] if verb == "install" else []
    return subprocess.run(
        ["apt-get", "--quiet=2", "-o", "DPkg::Lock::Timeout=120", verb, *options, *packages],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def no_service_starts() -> Iterator[None]:
    """Replace the machine's policy by one that forbids starting services, and restore it at the end."""
    restore_policy()
    if POLICY.exists():
        POLICY.replace(SAVED_POLICY)
    try:
        POLICY.write_text(POLICY_TEXT)
        POLICY.chmod(0o755)
        yield
    finally:
        restore_policy()


def restore_policy() -> None:
    """Restore the machine's policy, also after an earlier run that was killed before it could."""
    if POLICY.exists() and POLICY.read_text() == POLICY_TEXT:
        POLICY.unlink()
    if SAVED_POLICY.exists():
        SAVED_POLICY.replace(POLICY)
