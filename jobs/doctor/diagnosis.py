"""All checks of `sweep doctor` on one cluster, in their order: without a job, then one job per allocation."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from disttrain.records.versions import versions
from jobs.doctor.ask_login import ask_disk, ask_login
from jobs.doctor.disk_checks import check_disk
from jobs.doctor.doctor_jobs import DoctorJobs, run_here
from jobs.doctor.finding import Finding, Level
from jobs.doctor.job_checks import check_job
from jobs.doctor.login_checks import check_login
from jobs.doctor.wanted import Wanted, wanted_of_machine, wanted_of_site
from jobs.local.machine import this_machine
from jobs.planning.cluster import Cluster
from jobs.site.query_site import query_site
from jobs.slurm.submit import require_slurm

_FOLDER = ".doctor"


def diagnose(
    cluster: Cluster,
    wanted: Wanted | None,
    root: Path,
    *,
    with_jobs: bool,
    timeout_s: float,
    say: Callable[[str], None],
) -> Iterator[Finding]:
    """The findings, as they are made.

    Args:
        cluster: The cluster with the changes of the sweep.
        wanted: What a sweep needs; None for the usual allocations of the cluster.
        root: The folder of all sweeps.
        with_jobs: Whether jobs are sent.
        timeout_s: How long the jobs may wait in the queue.
        say: Prints a line about the progress.

    Raises:
        UserError: The commands of Slurm are missing here.
    """
    findings: list[Finding] = []
    if cluster.kind == "slurm":
        require_slurm(cluster.name)
        site = query_site(environ=os.environ)
        assert cluster.profile is not None
        wanted = wanted or wanted_of_site(site, cluster.profile)
        findings += check_login(ask_login(site, cluster, wanted, root), cluster, wanted)
    else:
        machine = this_machine(os.environ)
        wanted = wanted or wanted_of_machine(len(machine.gpus) or machine.cores)
        findings += check_disk(ask_disk(root, wanted.expected_bytes))
    yield from findings
    # Without the controller no job is sent, and into a folder that cannot be written no job can report.
    if with_jobs and not any(item.check in ("slurm", "disk") and item.level is Level.FAIL for item in findings):
        yield from _check_jobs(cluster, wanted, root, timeout_s, say)


def _check_jobs(
    cluster: Cluster, wanted: Wanted, root: Path, timeout_s: float, say: Callable[[str], None]
) -> Iterator[Finding]:
    folder = (root / _FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}").absolute()
    if cluster.kind == "slurm":
        say(f"one job per allocation, at most {timeout_s / 60:.0f} min in the queue and 2 min of time:")
        jobs = DoctorJobs(cluster, folder, wanted.request, say).run(wanted.allocations, timeout_s)
    else:
        say(f"{', '.join(map(str, wanted.allocations))} on this machine")
        jobs = run_here(wanted.allocations, folder, wanted.request)
    findings: list[Finding] = []
    for facts in jobs:
        profile = cluster.profile_for(facts.allocation)
        excluded = profile.excluded if profile else None
        findings += check_job(facts, versions(), needs_torch=wanted.runs_ours, excluded=excluded)
    yield from without_repeats(findings)
    if any(finding.fix for finding in findings):
        say(f"the logs and reports of the jobs are in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def without_repeats(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, without those that an earlier job had with the same words."""
    return list(dict.fromkeys(findings))


def counts(findings: Sequence[Finding]) -> Mapping[Level, int]:
    """The number of findings of each level."""
    return {level: sum(finding.level is level for finding in findings) for level in Level}
