"""The checks of the link of an allocation: what its ranks exchange data over, and how fast."""

from __future__ import annotations

from collections.abc import Iterator

from disttrain.records.job_files.doctor_reports import RankReport
from jobs.doctor.finding import Finding, warn
from jobs.doctor.job_facts import JobFacts

# Gloo and NCCL over TCP reach a tenth of a fast network and most of a slow one. Less than this is a fault.
_LEAST_SHARE = 0.05
_LEAST_GB_PER_S = 0.03
# NCCL reaches nine tenths of InfiniBand. TCP over the same adapter reaches less than this.
_LEAST_IB_SHARE = 0.2
_MBITS_PER_GB_PER_S = 8000
# Interfaces whose speeds differ less are not worth a change.
_FASTER = 1.9


def check_link(facts: JobFacts) -> Iterator[Finding]:
    """The ranks of several nodes use the fastest network that is active, and reach a fair part of its speed."""
    report = facts.reports.get(0)
    if report is None or report.link_gb_per_s is None or report.transport in (None, "one host"):
        return
    link, faster = describe_link(report), _faster_interface(report)
    if report.backend == "nccl" and _is_without_ib(report):
        adapters = ", ".join(f"{name} ({rate:g} Gbit/s)" for name, rate in report.ib_gbits.items())
        text = f"{facts.allocation} seems to run over TCP: {link}, although {adapters} is up"
        yield warn("link", text, _fix_tcp(report, faster))
    elif report.transport == "sockets" and faster is not None:
        speed = report.interface_mbits[faster]
        text = f"{facts.allocation} uses a slow network: {link}, although {faster} has {_speed(speed)}"
        yield warn("link", text, f"set network_interface: {faster} in the profile")
    elif report.link_gb_per_s < _least(report):
        text = f"the link of {facts.allocation} is slow: {link}"
        mbits = report.interface_mbits.get(report.interface or "")
        if mbits is not None:
            text += f", and {report.interface} has {_speed(mbits)}"
        others = [name for name in report.interface_mbits if name != report.interface]
        fix = "ask your site about the network between the nodes of the job"
        if others:
            fix = f"set network_interface to another one ({', '.join(others)}), or {fix}"
        hosts = ", ".join(sorted({other.host for other in facts.reports.values()}))
        yield warn("link", text, f"{fix}: {hosts}")


def _is_without_ib(report: RankReport) -> bool:
    """Whether NCCL does not use an active adapter: it is configured so, or the link is much slower than the adapter."""
    if not report.ib_gbits or report.link_gb_per_s is None:
        return False
    rate_gb_per_s = max(report.ib_gbits.values()) / 8
    return report.transport == "sockets" or report.link_gb_per_s < rate_gb_per_s * _LEAST_IB_SHARE


def describe_link(report: RankReport) -> str | None:
    """The link of a job as rank 0 measured it, in one line; None with one rank."""
    if report.link_gb_per_s is None:
        return None
    text = f"link {_gb(report.link_gb_per_s)} GB/s over {report.transport}"
    if report.interface is not None:
        text += f" ({report.interface})"
    return text


def _gb(gb_per_s: float) -> str:
    return f"{gb_per_s:.3g}"


def _least(report: RankReport) -> float:
    """The bus bandwidth in GB/s below which the link has a fault."""
    mbits = report.interface_mbits.get(report.interface or "")
    if mbits is None:
        return _LEAST_GB_PER_S
    return max(_LEAST_GB_PER_S, mbits / _MBITS_PER_GB_PER_S * _LEAST_SHARE)


def _faster_interface(report: RankReport) -> str | None:
    """The fastest active interface if it is clearly faster than that of the job."""
    used = report.interface_mbits.get(report.interface or "")
    if used is None:
        return None
    fastest = max(report.interface_mbits, key=lambda name: report.interface_mbits[name])
    if report.interface_mbits[fastest] < used * _FASTER:
        return None
    return fastest


def _fix_tcp(report: RankReport, faster: str | None) -> str:
    for name in ("NCCL_IB_DISABLE", "NCCL_NET"):
        if report.variables.get(name, "0") not in ("", "0"):
            return f"unset {name} in the shell and in setup of the profile"
    fix = f"set network_interface: {faster or 'ib0'} in the profile"
    return f"{fix}; with NCCL_DEBUG=INFO in the shell, a run logs which network it uses"


def _speed(mbits: int) -> str:
    """A speed of an interface.

    Example:
        >>> _speed(1000), _speed(100)
        ('1 Gbit/s', '0.1 Gbit/s')
    """
    return f"{mbits / 1000:g} Gbit/s"
