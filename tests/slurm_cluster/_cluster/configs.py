"""Fills in the templates of conf/ and writes them to the cluster's state folder."""

import hashlib
from string import Template

from _cluster.layout import (
    ACCOUNTING_DATABASE,
    CLUSTER_NAME,
    CONTROLLER,
    NODES,
    SLURMCTLD_PORT,
    SLURMD_PORT,
    SLURMDBD_PORT,
    SOURCE,
    Layout,
)
from _cluster.releases import Release, release_settings


def write_configs(layout: Layout, release: Release, *, freezer: bool) -> None:
    values = {
        "state": str(layout.state),
        "munge_socket": str(layout.munge_socket),
        "cluster_name": CLUSTER_NAME,
        "controller": CONTROLLER.name,
        "controller_address": CONTROLLER.address,
        "slurmctld_port": str(SLURMCTLD_PORT),
        "slurmd_port": str(SLURMD_PORT),
        "slurmdbd_port": str(SLURMDBD_PORT),
        "accounting_database": ACCOUNTING_DATABASE,
        "node_lines": "\n".join(
            f"NodeName={node.name} NodeHostname={node.name} NodeAddr={node.address}" for node in NODES
        ),
        **release_settings(release, freezer=freezer),
    }
    for template in sorted((SOURCE / "conf").glob("*.conf")):
        target = layout.slurm_conf.with_name(template.name)
        # slurmdbd refuses a file that others may read.
        target.touch(mode=0o600 if template.name == "slurmdbd.conf" else 0o644)
        target.write_text(Template(template.read_text()).substitute(values))


def fingerprint() -> str:
    """A hash of the files that define the cluster; another value means that another checkout started it."""
    digest = hashlib.sha256()
    for path in sorted([*(SOURCE / "conf").glob("*.conf"), *(SOURCE / "_cluster").glob("*.py")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
