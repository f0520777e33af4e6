"""The checks of a job: that its ranks start, agree, compute and exchange as fast as their network allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from disttrain.analysis.straggler import find_slowest
from disttrain.records.job_files.doctor_reports import RankReport, Stage
from jobs.doctor.clock_checks import check_clocks
from jobs.doctor.finding import Finding, exclude_line, fail, note, ok, warn
from jobs.doctor.job_facts import JobFacts, never_starts
from jobs.doctor.link_checks import check_link, describe_link
from jobs.slurm.states import State

_SLOW_IMPORT_S = 60.0
_ROUNDS = 8  # of the check of the products
_HAD = ("cached", "reachable")  # of a hub id
_OF_LOGIN = ("disttrain-sweeps", "submitit")
_FIX_OF_STATE = {
    State.OUT_OF_MEMORY: "set memory_gb_per_gpu in the profile to more",
    State.NODE_FAIL: "repeat it, or exclude the node with sbatch: {exclude: NODE}",
    State.PREEMPTED: "repeat it, or choose a partition without preemption",
    State.CANCELLED: "repeat it: someone has cancelled the job",
}
_STAGES = get_args(Stage)
_SLOWING = {"CUDA_LAUNCH_BLOCKING": ("1",), "TORCH_DISTRIBUTED_DEBUG": ("DETAIL",)}


def check_job(
    facts: JobFacts, login: Mapping[str, str], *, needs_torch: bool = True, excluded: str | None = None
) -> list[Finding]:
    """The findings of a job.

    Args:
        facts: What is known of the job.
        login: The versions of Python and of the packages on the login node.
        needs_torch: Whether runs need torch: not a user's own script, whose Python may be another one.
        excluded: The nodes that the profile excludes already.
    """
    if facts.refusal is not None:
        return [fail(_name(facts), f"was not sent: {facts.refusal}", "change the profile as the reason says")]
    if not facts.started:
        return [_not_started(facts)]
    findings = [
        *_check_silent(facts, excluded),
        *_check_errors(facts, needs_torch),
        *_check_versions(facts, login, excluded),
        *check_clocks(facts, excluded),
        *_check_products(facts, excluded),
        *_check_devices(facts, excluded),
        *_check_start(facts),
        *_check_hub(facts),
        *check_link(facts),
    ]
    if not any(finding.fix for finding in findings):
        findings.append(ok(_name(facts), _described(facts)))
    return findings


def _name(facts: JobFacts) -> str:
    return f"job {facts.allocation}"


def _exclude(nodes: Sequence[str], excluded: str | None) -> str:
    return exclude_line(sorted(set(nodes)), excluded)


def _not_started(facts: JobFacts) -> Finding:
    """A job that was cancelled while it waited."""
    reason = facts.reason or "no reason given"
    if never_starts(reason):
        fix = "change the partition, account or time of the profile as the reason says; sweep doctor --no-job says more"
        return fail(_name(facts), f"never starts: Slurm says {reason}", fix)
    text = f"waited {facts.waited_s:.0f} s ({reason}) and was cancelled: nothing was checked on its nodes"
    return warn(_name(facts), text, "repeat it with a longer --timeout, or when the cluster is less busy")


def _check_silent(facts: JobFacts, excluded: str | None) -> Iterator[Finding]:
    """Every rank has written a report into the folder."""
    missing = facts.missing_ranks
    if not missing:
        return
    if facts.log_line is not None:
        text = f"{_ranks(missing)} did not start: {facts.log_line}"
        yield fail(_name(facts), text, "install the package for the python of the profile, or correct python and setup")
        return
    if facts.state in _FIX_OF_STATE:
        text = f"ended as {facts.state} before {_ranks(missing)} wrote a report"
        yield fail(_name(facts), text, _FIX_OF_STATE[facts.state])
        return
    silent = facts.silent_nodes
    where = f" on {', '.join(silent)}" if silent else ""
    yield fail(
        "shared folder",
        f"{_ranks(missing)} of {facts.allocation}{where} wrote nothing into the folder of the job:"
        " the node does not see it, or cannot write there",
        f"choose a --root that all nodes share, or exclude the node: {_exclude(silent, excluded)}"
        if silent
        else "choose a --root that all nodes share",
        silent,
    )


def _check_errors(facts: JobFacts, needs_torch: bool) -> Iterator[Finding]:
    """No rank has ended early, and all have reached the end of the checks."""
    for rank, report in facts.reports.items():
        unseen = [other for other in report.missing_ranks if other in facts.reports]
        if unseen:
            text = f"rank {rank} on {report.host} did not see the files of {_ranks(unseen)}"
            yield fail("shared folder", text, "choose a --root that all nodes share at the same path")
        elif report.missing_ranks:
            continue  # these ranks have a finding of their own
        elif report.error is not None and not needs_torch and "'torch'" in report.error:
            text = f"the python of the profile has no torch ({report.python}): products and link were not checked"
            yield note(_name(facts), text)
            return
        elif report.error is not None:
            text = f"rank {rank} on {report.host} failed while {_doing(report)}: {report.error}"
            yield fail(_name(facts), text, _fix_error(report))
    unfinished = [report for report in facts.reports.values() if report.error is None and report.stage != "done"]
    # One rank that ends early, or another torch, leaves the others unfinished, and has a finding of its own.
    if unfinished and len(unfinished) == len(facts.reports) and not facts.missing_ranks and _same_torch(facts):
        yield _unfinished(facts, min(unfinished, key=lambda report: (_STAGES.index(report.stage), report.rank)))


def _unfinished(facts: JobFacts, first: RankReport) -> Finding:
    """A job whose ranks were all ended during a check."""
    during = f"rank {first.rank} on {first.host} was {_doing(first)}"
    if facts.state in _FIX_OF_STATE:
        return fail(_name(facts), f"ended as {facts.state} while {during}", _FIX_OF_STATE[facts.state])
    if facts.state == State.FAILED:
        text = f"ended as FAILED while {during}: {facts.log_line or 'its log is empty'}"
        return fail(_name(facts), text, "the log of the job says more")
    return fail(_name(facts), f"its ranks did not end: {during}", _fix_stuck(first))


def _doing(report: RankReport) -> str:
    """The stage of a rank as part of a sentence."""
    return {"importing": "importing torch", "connecting": "connecting to the other ranks"}.get(
        report.stage, report.stage
    )


def _fix_error(report: RankReport) -> str:
    if report.stage == "importing":
        return (
            f"install torch for {report.python}: pip install '.[train]' in the checkout; or set python in the profile"
        )
    return "set network_interface in the profile if the ranks cannot connect; else send the message to your site"


def _fix_stuck(report: RankReport) -> str:
    if report.stage == "importing":
        return "put the environment of the ranks on a faster file system"
    return "set network_interface to the network between the nodes; a firewall may close the ports 10240 to 32767"


def _same_torch(facts: JobFacts) -> bool:
    return len({report.versions.get("torch") for report in facts.reports.values()}) == 1


def _check_versions(facts: JobFacts, login: Mapping[str, str], excluded: str | None) -> Iterator[Finding]:
    """All ranks have the same versions, and those of the login node where both have the package."""
    reports = [report for _, report in sorted(facts.reports.items())]  # they come in any order
    if not reports:
        return
    for package in sorted({name for report in reports for name in report.versions}):
        hosts: dict[str, list[str]] = {}
        for report in reports:
            hosts.setdefault(report.versions.get(package, "none"), []).append(report.host)
        if len(hosts) > 1:
            # The fewer hosts are at fault; of as many, those that differ from the login node, or else from rank 0.
            right = (login.get(package), reports[0].versions.get(package, "none"))
            few = min(hosts, key=lambda version: (len(hosts[version]), version == right[0], version == right[1]))
            texts = [f"{version} on {', '.join(sorted(set(names)))}" for version, names in hosts.items()]
            fix = f"use one environment on a shared folder (python in the profile), or {_exclude(hosts[few], excluded)}"
            yield fail("versions", f"{package} is {' and '.join(texts)}", fix, sorted(set(hosts[few])))
    here, there = login.get("python", ""), reports[0].versions.get("python", "")
    if there and here.split(".")[:2] != there.split(".")[:2]:
        yield note("versions", f"Python is {here} here and {there} on the compute nodes")
    for package in _OF_LOGIN:
        compute = reports[0].versions.get(package)
        if compute is not None and compute != login.get(package):
            text = f"{package} is {login.get(package)} here and {compute} on the compute nodes"
            yield warn("versions", text, f"install the same release for {reports[0].python}")


def _check_products(facts: JobFacts, excluded: str | None) -> Iterator[Finding]:
    """Every rank computes correctly, and none is slow."""
    for report in facts.reports.values():
        if report.wrong:
            text = f"{' and '.join(report.wrong)} of known values is wrong on rank {report.rank}, {_place(report)}"
            yield fail("computing", text, _exclude([report.host], excluded), [report.host])
    ranks = [report for _, report in sorted(facts.reports.items()) if report.product_ms]
    if facts.shares_devices or len(ranks) < 2 or len({len(report.product_ms) for report in ranks}) > 1:
        return
    slowest = find_slowest([report.product_ms for report in ranks], _ROUNDS)
    if slowest is not None and slowest.is_slow:
        report = ranks[slowest.rank]
        text = (
            f"rank {report.rank}, {_place(report)}, is slow: its matrix product takes {slowest.ratio:.1f} times as long"
            " as on the other ranks"
        )
        yield warn("computing", text, _exclude([report.host], excluded), [report.host])


def _place(report: RankReport) -> str:
    return f"{report.device} of {report.host}"


def _check_devices(facts: JobFacts, excluded: str | None) -> Iterator[Finding]:
    """torch sees the GPUs that Slurm gave."""
    without = [report for report in facts.reports.values() if report.device_error is not None]
    if not without:
        return
    hosts = sorted({report.host for report in without})
    fix = "install a torch with CUDA that fits the driver, or set device: cpu"
    nodes: Sequence[str] = ()
    if len(without) < len(facts.reports):
        fix, nodes = _exclude(hosts, excluded), hosts
    yield fail("GPU", f"{without[0].device_error} ({', '.join(hosts)})", fix, nodes)


def _check_start(facts: JobFacts) -> Iterator[Finding]:
    """The start of a rank takes no minutes, and no variable makes it slow."""
    times_s = [report.import_s for report in facts.reports.values() if report.import_s is not None]
    if times_s and max(times_s) > _SLOW_IMPORT_S:
        text = f"import torch takes {max(times_s):.0f} s at each start of a run"
        yield warn("start", text, "put the environment of the ranks on a faster file system, or into an image")
    variables = {name: value for report in facts.reports.values() for name, value in report.variables.items()}
    for name, values in _SLOWING.items():
        if variables.get(name) in values:
            yield warn("variables", f"{name}={variables[name]} in the jobs makes runs slow", f"unset {name}")


def _check_hub(facts: JobFacts) -> Iterator[Finding]:
    """The nodes have each model and data set in their cache, or reach the hub."""
    states: dict[str, tuple[str, str]] = {}
    for report in facts.reports.values():
        for name, state in report.hub.items():
            if name not in states or state not in _HAD:
                states[name] = state, report.host
    for name, (state, host) in states.items():
        if state == "cached":
            yield ok("hub", f"{name} is in the cache")
        elif state == "reachable":
            yield ok("hub", f"{name} can be downloaded on the compute nodes")
        else:
            text = f"{name} is not in the cache of {host}, and cannot be downloaded there: {state}"
            yield fail("hub", text, "download it once: sweep prefetch FILE, with --here on a host that reaches the hub")


def _described(facts: JobFacts) -> str:
    """A job without problems in one line."""
    reports = [report for _, report in sorted(facts.reports.items())]
    parts = [", ".join(sorted({report.host for report in reports}))]
    first = reports[0]
    if first.import_s is not None:
        parts.append(f"torch {first.versions.get('torch')} imported in {first.import_s:.1f} s")
    if first.product_ms and first.product_gflop:
        # GFLOP per ms are TFLOP/s: of the slowest rank in its best round.
        tflop_per_s = first.product_gflop / max(min(report.product_ms) for report in reports if report.product_ms)
        parts.append(f"{len(reports)} x {first.device} at {tflop_per_s:.3g} TFLOP/s")
    if (link := describe_link(first)) is not None:
        parts.append(link)
    return "; ".join(parts)


def _ranks(ranks: Sequence[int]) -> str:
    """Some ranks as text.

    Example:
        >>> _ranks([1]), _ranks([1, 2])
        ('rank 1', 'ranks 1, 2')
    """
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {', '.join(map(str, ranks))}"
