"""Asks on the login node what the checks without a job need: Slurm, the environment, and the root folder."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from disttrain.errors import UserError
from jobs.doctor.disk_checks import DiskFacts
from jobs.doctor.login_checks import Answer, EnvironmentFacts, LoginFacts, parse_test_only
from jobs.doctor.quota import quota_left_bytes
from jobs.doctor.wanted import Wanted
from jobs.environ import clean_environ, leftovers
from jobs.planning.allocation import Allocation
from jobs.planning.cluster import Cluster
from jobs.planning.cluster_profile import ClusterProfile
from jobs.planning.plan import JobGroup, Plan, slurm_parameters
from jobs.site.site_facts import SiteFacts
from jobs.slurm.command import run_command
from jobs.slurm.squeue import ClusterConfig
from jobs.slurm.submit import check_cluster, overruled_by
from jobs.storage.claims import claimed

JOB_NAME = "sweep-doctor"
_PROBE_BYTES = 2**22
_CLAIM_S = 5.0
# What names the cluster or the user's own settings, and describes no job.
_NOT_OF_A_JOB = ("SLURM_CLUSTER", "SLURM_CONF", "SLURM_JWT")
# Where Slurm is installed, and how its other commands print.
_NOT_OF_SRUN = (
    "SLURM_ROOT", "SLURM_HOME", "SLURM_PREFIX", "SLURM_VERSION", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN",
)  # fmt: skip


def ask_login(site: SiteFacts, cluster: Cluster, wanted: Wanted, root: Path) -> LoginFacts:
    """What the checks without a job need.

    Args:
        site: The facts about the site.
        cluster: The cluster with the changes of the sweep.
        wanted: What is checked for.
        root: The folder of all sweeps.
    """
    groups = {allocation: _group(cluster, allocation) for allocation in wanted.allocations}
    plan = Plan(JOB_NAME, cluster, root, tuple(groups.values()))
    answers: dict[Allocation, Answer] = {}
    if site.is_reachable:
        answers = {allocation: _test_only(plan, group) for allocation, group in groups.items()}
    overruled = {name for group in groups.values() for name in overruled_by(plan, group)}
    environment = environment_facts(os.environ, tuple(sorted(overruled)), site)
    return LoginFacts(site, environment, ask_disk(root, wanted.expected_bytes), answers)


def _group(cluster: Cluster, allocation: Allocation) -> JobGroup:
    """The request of an allocation, as a group without runs."""
    profile = cluster.profile_for(allocation)
    assert profile is not None
    return request_group(allocation, profile)


def request_group(allocation: Allocation, profile: ClusterProfile) -> JobGroup:
    """The request of an allocation, as a group without runs."""
    return JobGroup(allocation, (), slurm_parameters(JOB_NAME, allocation, profile), profile)


def _test_only(plan: Plan, group: JobGroup) -> Answer:
    """What sbatch says of a request."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(plan.script(group))
        script.flush()
        command = ["sbatch", "--test-only", script.name]
        with clean_environ(other_node=True, overruled=overruled_by(plan, group)):
            try:
                done = run_command(command, dict(os.environ))
            except (OSError, subprocess.TimeoutExpired) as error:
                return Answer(False, f"sbatch gives no answer: {error}")
    return parse_test_only(done.returncode, done.stdout + done.stderr)


def environment_facts(environ: Mapping[str, str], overruled: tuple[str, ...], site: SiteFacts) -> EnvironmentFacts:
    """The variables of the shell that concern jobs.

    Args:
        environ: The environment.
        overruled: The SBATCH_ variables that the profile or sweep overrules.
        site: The facts about the site.
    """
    hidden = leftovers(environ)
    leaked = tuple(sorted(name for name in hidden if not name.startswith(_NOT_OF_A_JOB)))
    passed_on = {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith("SLURM_") and name not in hidden and not name.startswith(_NOT_OF_A_JOB + _NOT_OF_SRUN)
    }
    other_cluster = None
    try:
        check_cluster(ClusterConfig(site.cluster_name), environ)
    except UserError as error:
        other_cluster = error.message
    return EnvironmentFacts(leaked, passed_on, overruled, other_cluster)


def ask_disk(root: Path, expected_bytes: int | None) -> DiskFacts:
    """Whether the root can be written and locked, and what is free there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        status = os.statvfs(root)
        free_bytes, free_files = status.f_bavail * status.f_frsize, status.f_favail
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=root) as folder:
            _write_probe(Path(folder) / "probe")
    except OSError as error:
        return DiskFacts(str(root), write_error=error.strerror, expected_bytes=expected_bytes)
    lock_error = None
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".doctor-", dir=root) as folder,
            claimed(Path(folder) / "lock", _CLAIM_S),
        ):
            pass
    except OSError as error:
        lock_error = error.strerror
    # A file system without a fixed number of files reports 0.
    quota_bytes = quota_left_bytes(root.resolve(), os.environ)
    return DiskFacts(str(root), free_bytes, free_files or None, None, lock_error, expected_bytes, quota_bytes)


def _write_probe(path: Path) -> None:
    """Writes some MiB to the disk: a full disk or quota shows only then."""
    with path.open("wb") as file:
        file.write(os.urandom(_PROBE_BYTES))
        file.flush()
        os.fsync(file.fileno())
