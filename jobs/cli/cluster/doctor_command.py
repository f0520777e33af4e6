"""`sweep doctor`: whether a sweep will work on a cluster, with a fix for what will not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disttrain.errors import UserError
from jobs.cli.options import Assignments, ClusterName, Json, Overrides, Root
from jobs.cli.shared import all_assignments, plan_sweep, print_json, stderr_console, sweeps_root

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.doctor.finding import Finding
    from jobs.doctor.wanted import Wanted
    from jobs.planning.cluster import Cluster

OptionalFile = Annotated[
    Path | None,
    typer.Argument(metavar="FILE", help="A sweep file, whose allocations are checked. Default: 1x1, 1x4, 2x1, 2x2."),
]
NoJob = Annotated[bool, typer.Option("--no-job", help="Submit no job: check only what the login node can know.")]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=1, metavar="MINUTES", help="How long the jobs may wait in the queue."),
]


def doctor(
    file: OptionalFile = None,
    assignments: Assignments = None,
    cluster: ClusterName = None,
    set_: Overrides = None,
    root: Root = None,
    no_job: NoJob = False,
    timeout: Timeout = 10.0,
    json_: Json = False,
) -> None:
    """Check that runs will work on a cluster, and print a fix for what will not.

    It first asks Slurm and the file system, then sends a job of two minutes for each allocation. The exit status is
    1 if a run would fail.
    """
    from jobs.doctor.diagnosis import diagnose
    from jobs.doctor.finding import would_fail

    found, wanted = _find_cluster(file, cluster, all_assignments(assignments, set_), root)
    if found.kind == "debug":
        raise UserError("--cluster debug has nothing to check", hint="choose local or a cluster profile")
    console = stderr_console()
    findings: list[Finding] = []
    for finding in diagnose(
        found,
        wanted,
        sweeps_root(root),
        with_jobs=not no_job,
        timeout_s=60 * timeout,
        say=lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
    ):
        findings.append(finding)
        if not json_:
            _print_finding(finding)
    if json_:
        print_json({"cluster": found.name, "findings": [finding.to_json() for finding in findings]})
    else:
        _print_end(findings, found.profile.excluded if found.profile else None)
    if would_fail(findings):
        raise typer.Exit(1)


def _find_cluster(
    file: Path | None, cluster: str | None, assignments: Sequence[str], root: Path | None
) -> tuple[Cluster, Wanted | None]:
    """The cluster with the changes of a sweep, and what the sweep needs; None without a sweep."""
    from disttrain.records.job_files.prefetch_files import read_manifest
    from jobs.doctor.wanted import wanted_of_runs
    from jobs.planning.cluster import find_cluster

    if file is None:
        return find_cluster(cluster, os.environ, Path.cwd()), None
    _, plan = plan_sweep(file, cluster, assignments, root)
    return plan.cluster, wanted_of_runs(plan.runs, read_manifest(plan.folder))


def _print_finding(finding: Finding) -> None:
    print(f"{finding.level.name.lower():5} {finding.check:14} {finding.text}", flush=True)
    if finding.fix:
        print(f"{'':20} fix: {finding.fix}", flush=True)


def _print_end(findings: Sequence[Finding], excluded: str | None) -> None:
    """The number of problems, and the line that excludes all nodes at fault."""
    from jobs.doctor.diagnosis import counts
    from jobs.doctor.finding import Level, exclude_line, excluded_nodes

    number = counts(findings)
    if number[Level.FAIL] or number[Level.WARN]:
        print(f"\n{number[Level.FAIL]} would fail, {number[Level.WARN]} to look at")
    else:
        print("\nnothing would fail")
    if nodes := excluded_nodes(findings):
        print(f"without these nodes: {exclude_line(nodes, excluded)}")
